"""The head's layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deepmetric.errors import InputError
from deepmetric.models.head import Head


def test_linear_alone() -> None:
    head, features = Head(6, 4), torch.randn(3, 6)
    assert [tuple(p.shape) for p in head.parameters()] == [(4, 6), (4,)]
    torch.testing.assert_close(head(features), features @ head.linear.weight.T)  # the bias starts at 0
    torch.nn.init.ones_(head.linear.bias)
    torch.testing.assert_close(head(features), features @ head.linear.weight.T + 1)


def test_hidden_layer_then_norm_then_linear() -> None:
    head, features = Head(6, 4, hidden_dim=5, layer_norm=True), torch.randn(3, 6)
    hidden = head.hidden[0]
    assert [tuple(p.shape) for p in head.parameters()] == [(5, 6), (5,), (4, 5), (4,)]  # the norm has none
    expected = F.relu(F.linear(features, hidden.weight, hidden.bias))
    expected = (expected - expected.mean(1, keepdim=True)) / (
        expected.var(1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(head(features), F.linear(expected, head.linear.weight, head.linear.bias))


def test_starts_from_hes_distribution() -> None:
    weight = Head(300, 200).linear.weight
    assert weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)


@pytest.mark.parametrize("wrong", [{"embedding_dim": 0}, {"embedding_dim": 8, "hidden_dim": -1}])
def test_widths_below_one(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected at least 1"):
        Head(6, **wrong)

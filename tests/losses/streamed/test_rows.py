"""References that have unit length already are taken as they are, and nothing else changes by it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.rows import are_unit

BOTH = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("dim", [2, 128, 2048])
def test_what_was_normalised_is_unit(dtype: torch.dtype, dim: int) -> None:
    rows = normalize(torch.randn(500, dim, dtype=dtype))
    assert are_unit(rows, dtype)


@pytest.mark.parametrize("dtype", BOTH)
def test_one_row_of_another_length_shows(dtype: torch.dtype) -> None:
    rows = normalize(torch.randn(20000, 8, dtype=dtype))
    for factor in (0.0, 1 + 20 * torch.finfo(dtype).eps, 2.0, torch.nan):
        other = rows.clone()
        other[-1] *= factor
        assert not are_unit(other, dtype)


def test_rows_of_another_type_are_not() -> None:
    rows = torch.eye(4, dtype=torch.float16)
    assert not are_unit(rows, torch.float32)


@pytest.mark.parametrize("dtype", BOTH)
def test_unit_references_give_what_longer_ones_give(dtype: torch.dtype) -> None:
    x, refs = torch.randn(5, 16, dtype=dtype), normalize(torch.randn(700, 16, dtype=dtype))
    labels, ref_labels = torch.arange(5), torch.arange(700) % 5
    found = []
    for rows, divided in ((refs, False), (4 * refs, True)):  # by a power of two: no other rounding
        leaf = x.clone().requires_grad_()
        pairs = Comparison(leaf, labels, rows, ref_labels, None, width=256)
        assert pairs.normalize_refs is divided
        value = pairs.negatives.logsumexp(20.0).sum() - pairs.positives.sum(lambda v: v).sum()
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for unit, longer in zip(*found):
        torch.testing.assert_close(unit, longer)


@pytest.mark.parametrize("dtype", BOTH)
def test_a_copy_among_unit_references_is_at_distance_0(dtype: torch.dtype) -> None:
    x = normalize(torch.randn(64, 128, dtype=dtype))
    refs = x.repeat(5, 1)
    pairs = Comparison(x, torch.arange(64), refs, torch.full((320,), -1), None, kind="distance", width=256)
    assert not pairs.normalize_refs
    assert (pairs.negatives.min() == 0).all()

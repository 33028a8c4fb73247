"""MultiSimilarityLoss against a loop over anchors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.losses import MultiSimilarityLoss


def by_loops(x, labels, refs, ref_labels, own, alpha, beta, base, epsilon, reduction):
    similarity = (x / x.norm(dim=1, keepdim=True)) @ (refs / refs.norm(dim=1, keepdim=True)).T
    total, kept = 0.0, 0
    for i, row in enumerate(similarity.tolist()):
        positives = [s for j, s in enumerate(row) if ref_labels[j] == labels[i] and own[i] != j]
        negatives = [s for j, s in enumerate(row) if ref_labels[j] != labels[i] and own[i] != j]
        if epsilon is not None:
            least, most = min(positives, default=math.inf), max(negatives, default=-math.inf)
            positives, negatives = (
                [s for s in positives if s - epsilon < most],
                [s for s in negatives if s + epsilon > least],
            )
        if reduction == "kept" and not (positives and negatives):
            continue
        kept += 1
        total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
        total += math.log(1 + sum(math.exp(beta * (s - base)) for s in negatives)) / beta
    return total / max(kept, 1)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_equals_the_loop_over_anchors(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, m, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    epsilon = data.draw(st.sampled_from([None, 0.0, 0.1, 0.5]))
    reduction = data.draw(st.sampled_from(["anchors", "kept"]))
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    parameters = (1.5, 40.0, 0.4, epsilon, reduction)
    loss = MultiSimilarityLoss(*parameters)
    expected = by_loops(x, labels, x, labels, range(n), *parameters)
    assert loss(x, labels).item() == pytest.approx(expected, abs=1e-11)
    own = torch.randint(-1, m, (n,), generator=generator)
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), *parameters)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, abs=1e-11)


def test_an_anchor_that_lacks_a_side():
    """Unmined, its other half counts; mined, it counts 0."""
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    unmined, mined = MultiSimilarityLoss(epsilon=None), MultiSimilarityLoss()
    one_class, apart = torch.zeros(3, dtype=torch.long), torch.arange(3)
    assert unmined(x, one_class).item() > 0.3
    assert unmined(x, apart).item() > 0.1
    assert mined(x, one_class).item() == 0
    assert mined(x, apart).item() == 0


def test_large_sharpness_does_not_overflow():
    """exp(beta (S - base)) alone would be infinite in float32."""
    x = torch.nn.functional.normalize(torch.ones(4, 3) + torch.eye(4, 3) * 1e-2, dim=1).requires_grad_()
    value = MultiSimilarityLoss(beta=1000.0, base=0.0)(x, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(1 + 0.5 * math.log1p(math.exp(-2.0)), abs=1e-2)
    assert x.grad.isfinite().all()

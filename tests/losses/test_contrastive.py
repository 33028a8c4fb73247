"""ContrastiveLoss against a loop over pairs, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.losses import ContrastiveLoss

COSTS = {
    "cosine": (lambda s, d, m: max(0.0, m - s), lambda s, d, m: s if s > m else 0.0),
    "cosine_hinge": (lambda s, d, m: max(0.0, m - s), lambda s, d, m: max(0.0, s - m)),
    "distance": (lambda s, d, m: max(0.0, d - m), lambda s, d, m: max(0.0, m - d)),
    "squared_distance": (lambda s, d, m: max(0.0, d * d - m), lambda s, d, m: max(0.0, m - d * d)),
    "hadsell": (lambda s, d, m: max(0.0, d - m) ** 2 / 2, lambda s, d, m: max(0.0, m - d) ** 2 / 2),
}


def by_loops(x, labels, refs, ref_labels, own, form, low, high, reduction):
    x, refs = ([[v / math.hypot(*row) for v in row] for row in rows.tolist()] for rows in (x, refs))
    positives, negatives = [], []
    for i, (a, label) in enumerate(zip(x, labels.tolist())):
        for j, (r, ref_label) in enumerate(zip(refs, ref_labels.tolist())):
            if own is not None and own[i] == j:
                continue
            similarity, distance = sum(map(float.__mul__, a, r)), math.dist(a, r)
            kind, side, margin = (positives, 0, low) if label == ref_label else (negatives, 1, high)
            kind.append(COSTS[form][side](similarity, distance, margin))
    if reduction == "anchors":
        return (sum(positives) + sum(negatives)) / len(x)
    halves = []
    for costs in (positives, negatives):
        counted = [cost for cost in costs if cost > 1e-14] if reduction == "nonzero" else costs
        halves.append(sum(counted) / max(len(counted), 1))
    return sum(halves)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_equals_the_loop_over_pairs(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, m, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    form, reduction = (
        data.draw(st.sampled_from(sorted(COSTS))),
        data.draw(st.sampled_from(["anchors", "nonzero", "mean"])),
    )
    low, high = (
        data.draw(st.sampled_from([(0.95, 0.2), (0.1, 1.3)])) if data.draw(st.booleans()) else (0.4, 0.6)
    )
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    loss = ContrastiveLoss(form, low, high, reduction)
    settings_ = (form, low, high, reduction)
    assert loss(x, labels).item() == pytest.approx(
        by_loops(x, labels, x, labels, range(n), *settings_), abs=1e-12
    )
    own = torch.randint(-1, m, (n,), generator=generator)
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), *settings_)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, abs=1e-12)


def test_default_margins_follow_the_form():
    assert (ContrastiveLoss().positive_margin, ContrastiveLoss().negative_margin) == (1.0, 0.5)
    distance = ContrastiveLoss("distance")
    assert (distance.positive_margin, distance.negative_margin) == (0.0, 1.0)


@pytest.mark.parametrize("form", ["distance", "squared_distance", "hadsell"])
def test_exact_copy_pulls_nowhere(form):
    """At distance 0 the derivative is 0, for a positive and for a negative."""
    x = torch.tensor([[0.6, 0.8]] * 3, dtype=torch.float64, requires_grad=True)
    value = ContrastiveLoss(form)(x, torch.tensor([0, 0, 1]))
    value.backward()
    assert value.item() == pytest.approx(4 / 3 * (0.5 if form == "hadsell" else 1))
    assert torch.equal(x.grad, torch.zeros_like(x))

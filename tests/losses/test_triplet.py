"""TripletLoss against loops over anchors, positives and negatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from deepmetric.losses import TripletLoss

MININGS = ["all", "semihard", "semihard_band", "hard", "hard_band", "easy_positive"]


def by_loops(x, labels, refs, ref_labels, own, loss: TripletLoss) -> float:
    """One triplet at a time, distances by differences of coordinates."""
    if loss.normalize or loss.form == "cosine":
        x, refs = x / x.norm(dim=1, keepdim=True), refs / refs.norm(dim=1, keepdim=True)
    x, refs, labels, ref_labels = x.tolist(), refs.tolist(), labels.tolist(), ref_labels.tolist()

    def far(a, b):
        distance = math.dist(a, b)
        return {
            "distance": distance,
            "squared_distance": distance**2,
            "cosine": distance**2 / 2 - 1,  # of unit rows; exact copies tie exactly
        }[loss.form]

    costs = []
    for i, anchor in enumerate(x):
        d = [far(anchor, ref) for ref in refs]
        candidates = [j for j in range(len(refs)) if j != own[i]]
        negatives = [j for j in candidates if ref_labels[j] != labels[i]]
        positives = [(d[j], refs[j]) for j in candidates if ref_labels[j] == labels[i]]
        if not positives and loss.singletons == "push":
            positives = [(far(anchor, anchor), anchor)]
        if not positives or not negatives:
            continue
        if loss.mining in ("hard", "easy_positive"):
            choose = max if loss.mining == "hard" else min
            positives = [choose(positives, key=lambda pair: pair[0])]
        for d_ap, positive in positives:
            further = [j for j in negatives if d[j] > d_ap + 1e-12]
            chosen = {
                "all": negatives,
                "semihard_band": [j for j in further if d[j] - d_ap <= loss.margin],
                "hard_band": [j for j in negatives if j not in further],
                "hard": [min(negatives, key=d.__getitem__)],
                "easy_positive": [min(further, key=d.__getitem__)] if further else [],
                "semihard": [
                    min(further, key=d.__getitem__) if further else max(negatives, key=d.__getitem__)
                ],
            }[loss.mining]
            for j in chosen:
                d_an = min(d[j], far(positive, refs[j])) if loss.swap else d[j]
                excess = d_ap - d_an + loss.margin
                costs.append(math.log1p(math.exp(excess)) if loss.soft_margin else max(0.0, excess))
    if loss.reduction == "nonzero":
        costs = [cost for cost in costs if cost > 1e-14]
    return sum(costs) / max(len(costs), 1)


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_equals_the_loops_over_triplets(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, m, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    loss = TripletLoss(
        data.draw(st.sampled_from([0.0, 0.2, 1.0])),
        data.draw(st.sampled_from(MININGS)),
        data.draw(st.sampled_from(["distance", "squared_distance", "cosine"])),
        soft_margin=data.draw(st.booleans()),
        reduction=data.draw(st.sampled_from(["nonzero", "mean"])),
        swap=data.draw(st.booleans()),
        singletons=data.draw(st.sampled_from(["skip", "push"])),
        normalize=data.draw(st.booleans()),
    )
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    if data.draw(st.booleans()):  # exact copies inside the references and between both sets
        refs[m // 2] = refs[0]
        refs[m - 1] = x[0]
        x[n - 1] = x[0]
    expected = by_loops(x, labels, x, labels, range(n), loss)
    assert loss(x, labels).item() == pytest.approx(expected, abs=1e-9)
    own = torch.randint(-1, m, (n,), generator=generator).tolist()
    expected = by_loops(x, labels, refs, ref_labels, own, loss)
    assert loss(x, labels, refs, ref_labels, torch.tensor(own)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mining", MININGS)
def test_a_copy_in_another_class_is_a_tie(mining):
    """Item 1 and item 2 are one point under two labels: for anchor 0 the negative is as far as the positive."""
    x = torch.tensor([[1.0, 0.2], [0.3, 1.0], [0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = TripletLoss(0.3, mining, "distance", reduction="mean")
    value = loss(x[:1], torch.tensor([0]), x[1:], torch.tensor([0, 1]))
    tie_counts = mining in (
        "all",
        "hard",
        "hard_band",
        "semihard",
    )  # the last takes it for want of a further one
    assert value.item() == pytest.approx(0.3 if tie_counts else 0.0)
    value.backward()
    assert x.grad.isfinite().all()


def test_chosen_triplets_by_their_distances():
    loss = TripletLoss(0.5, reduction="mean")
    assert loss.of_distances(torch.tensor([1.0, 2.0]), torch.tensor([1.2, 4.0])).item() == pytest.approx(0.15)


def test_memory_is_that_of_pairs_not_of_triplets():
    """64 anchors x 2,000 references in 100 classes: no operator may give N x M x M = 2.6e8 numbers."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    x, refs = torch.randn(64, 8), torch.randn(2000, 8)
    labels, ref_labels = torch.arange(64) % 100, torch.arange(2000) % 100
    with Watch():
        TripletLoss(mining="all")(x, labels, refs, ref_labels)
    assert 0 < largest <= 64 * 20 * 2000


@pytest.mark.parametrize("mining", ["all", "semihard_band", "hard_band"])
def test_soft_margin_in_tiles_against_references_of_any_length(mining, random_batch, monkeypatch):
    """A memory holds rows as they came: they are brought to unit length tile by tile, in a buffer of their own."""
    loss = TripletLoss(0.5, mining, soft_margin=True)
    (rows, labels), (refs, ref_labels) = random_batch(0, n=8), random_batch(1, n=30)
    rows.requires_grad_()
    (as_matrix,) = torch.autograd.grad(loss(rows, labels, refs, ref_labels), rows)
    monkeypatch.setattr("deepmetric.losses.streamed.comparison.MATRIX", 0)
    (in_tiles,) = torch.autograd.grad(loss(rows, labels, refs, ref_labels), rows)
    torch.testing.assert_close(in_tiles, as_matrix)

"""NCA loss against softmaxes written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.losses import NCALoss


def by_loops(x, labels, refs, ref_labels, own, loss):
    if loss.normalize:
        x, refs = x / x.norm(dim=1, keepdim=True), refs / refs.norm(dim=1, keepdim=True)
    x, refs, labels, ref_labels = x.tolist(), refs.tolist(), labels.tolist(), ref_labels.tolist()
    costs = []
    for i, anchor in enumerate(x):
        pairs = []
        for j, ref in enumerate(refs):
            if j != own[i]:
                dot = sum(p * q for p, q in zip(anchor, ref))
                near = dot if loss.similarity == "cosine" else -(math.dist(anchor, ref) ** 2)
                pairs.append((near, ref_labels[j] == labels[i]))
        if not any(positive for _, positive in pairs):
            continue
        pairs.sort(reverse=True)
        nearest = pairs[: loss.neighbours]
        if not any(positive for _, positive in nearest):
            nearest.append(next(pair for pair in pairs if pair[1]))
        top = nearest[0][0]
        weights = [(math.exp(loss.scale * (near - top)), positive) for near, positive in nearest]
        p = sum(w for w, positive in weights if positive) / sum(w for w, _ in weights)
        costs.append(-math.log(p) if loss.form == "log" else 1 - p)
    return sum(costs) / max(len(costs), 1)


@given(
    st.builds(
        NCALoss,
        st.sampled_from([1.0, 8.0]),
        st.sampled_from(["log", "expected"]),
        st.sampled_from(["squared_distance", "cosine"]),
        st.sampled_from([None, 1, 3, 50]),
        st.booleans(),
    ),
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.integers(1, 10),
    st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_equals_the_softmax(loss, seed, n, m, classes):
    generator = torch.Generator().manual_seed(seed)
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    expected = by_loops(x, labels, x, labels, range(n), loss)
    assert loss(x, labels).item() == pytest.approx(expected, abs=1e-9)
    own = torch.randint(-1, m, (n,), generator=generator)
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), loss)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, abs=1e-9)


def test_hardest_anchors_keep_their_gradient_where_a_softmax_underflows():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.01]], requires_grad=True)
    value = NCALoss(scale=200.0)(x[:1], torch.tensor([0]), x[1:], torch.tensor([0, 1]))
    assert value.item() == pytest.approx(800, rel=1e-3)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1


def test_no_negative_among_the_nearest_costs_nothing():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    value = NCALoss(neighbours=1)(x[:1], torch.tensor([0]), x[1:], torch.tensor([0, 1]))
    assert value.item() == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NCALoss(form="logs"), "Did you mean 'log'"),
        (lambda: NCALoss(similarity="cosin"), "Did you mean 'cosine'"),
        (lambda: NCALoss(scale=0), "above 0"),
        (lambda: NCALoss(neighbours=0), "at least 1, or None"),
    ],
)
def test_wrong_option_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()

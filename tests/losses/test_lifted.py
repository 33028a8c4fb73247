"""Lifted structure loss against plain loops over its sums."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.losses import LiftedStructureLoss


def lse(values):
    return math.log(sum(map(math.exp, values))) if values else None


def by_loops(x, labels, refs, ref_labels, own, loss):
    if loss.normalize:
        x, refs = x / x.norm(dim=1, keepdim=True), refs / refs.norm(dim=1, keepdim=True)
    x, refs, labels, ref_labels = x.tolist(), refs.tolist(), labels.tolist(), ref_labels.tolist()

    def value(a, b):
        if loss.form == "modified":
            return sum(p * q for p, q in zip(a, b))
        return math.dist(a, b) ** (1 if loss.distance == "distance" else 2)

    def values(i, same):
        return {
            j: value(x[i], refs[j])
            for j in range(len(refs))
            if j != own[i] and (ref_labels[j] == labels[i]) == same
        }

    if loss.form == "original":
        squares = []
        for i in range(len(x)):
            for j, distance in values(i, True).items():
                ends = [i] + [a for a in range(len(x)) if own[a] == j]
                every = [loss.margin - d for a in ends for d in values(a, False).values()]
                hinge = max(0.0, lse(every) + distance - loss.positive_margin) if every else 0.0
                squares.append(hinge**2 / 2)
        return sum(squares) / max(len(squares), 1)

    total, kept = 0.0, 0
    for i in range(len(x)):
        positives, negatives = list(values(i, True).values()), list(values(i, False).values())
        if loss.form == "modified" and loss.epsilon is not None and positives and negatives:
            least, most = min(positives), max(negatives)
            positives = [s for s in positives if s - loss.epsilon < most]
            negatives = [s for s in negatives if s + loss.epsilon > least]
        if not (positives or negatives) if loss.incomplete == "count" else not (positives and negatives):
            continue
        kept += 1
        if loss.form == "modified":
            total += 2 / loss.alpha * lse([-loss.alpha * s for s in positives])
            total += 2 / loss.beta * lse([loss.beta * s for s in negatives])
        else:
            pull = lse([d - loss.positive_margin for d in positives]) or 0.0
            push = lse([loss.margin - d for d in negatives]) or 0.0
            total += max(0.0, pull + push)
    return total / max(kept if loss.reduction == "kept" else len(x), 1)


FORMS = st.one_of(
    st.builds(
        LiftedStructureLoss,
        st.just("original"),
        st.sampled_from([1.0, 0.2]),
        st.sampled_from([0.0, 0.3]),
        st.sampled_from(["distance", "squared_distance"]),
        st.booleans(),
    ),
    st.builds(
        LiftedStructureLoss,
        st.just("generalized"),
        st.sampled_from([1.0, -1.0]),
        st.sampled_from([0.0, 0.3]),
        st.sampled_from(["distance", "squared_distance"]),
        st.booleans(),
        reduction=st.sampled_from(["anchors", "kept"]),
        incomplete=st.sampled_from(["skip", "count"]),
    ),
    st.builds(
        LiftedStructureLoss,
        st.just("modified"),
        alpha=st.sampled_from([2.0, 9.0]),
        beta=st.sampled_from([40.0, 10.0]),
        epsilon=st.sampled_from([None, 0.1, 0.6]),
        reduction=st.sampled_from(["anchors", "kept"]),
    ),
)


@given(FORMS, st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 10), st.integers(1, 4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_equals_the_loops(loss, seed, n, m, classes, copies):
    generator = torch.Generator().manual_seed(seed)
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    if copies:
        x[n - 1], refs[m - 1] = x[0], x[0]
    assert loss(x, labels).item() == pytest.approx(by_loops(x, labels, x, labels, range(n), loss), abs=1e-9)
    # Each reference is at most one anchor's own copy.
    own = torch.full((n,), -1)
    some = torch.randperm(m, generator=generator)[: n // 2]
    own[: len(some)] = some
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), loss)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, abs=1e-9)


def test_negatives_of_both_ends_count():
    """The negative is 1 from anchor 0 and 2 from anchor 1, these 1 apart: log(e^0 + e^-1) + 1, squared, halved."""
    x = torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64)
    value = LiftedStructureLoss()(x, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((math.log(1 + math.exp(-1)) + 1) ** 2 / 2)


def test_weights_of_the_modified_form_sum_to_two_an_anchor(random_batch):
    """GPW: the gradient of one anchor is 2 (Σ softmax(beta S) x_k - Σ softmax(-alpha S) x_j), tangential."""
    rows, labels = random_batch(0, n=12)
    rows = rows / rows.norm(dim=1, keepdim=True)
    anchors = rows.clone().requires_grad_()
    loss = LiftedStructureLoss("modified")
    (gradient,) = torch.autograd.grad(loss(anchors[:1], labels[:1], rows, labels, torch.tensor([0])), anchors)
    s, positive, negative = rows @ rows[0], labels == labels[0], labels != labels[0]
    positive[0] = False
    weights = torch.zeros_like(s)
    weights[positive] = -2 * (-2 * s[positive]).softmax(0)
    weights[negative] = 2 * (40 * s[negative]).softmax(0)
    wanted = weights @ rows
    wanted = wanted - (wanted @ rows[0]) * rows[0]
    torch.testing.assert_close(gradient[0], wanted)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"form": "generalised"}, "Did you mean 'generalized'"),
        ({"form": "modified", "margin": 1.0}, "`margin` of LiftedStructureLoss has no meaning"),
        ({"form": "modified", "normalize": False}, "`normalize` of"),
        ({"alpha": 3.0}, "`alpha` of LiftedStructureLoss has no meaning with form='original'"),
        ({"reduction": "kept"}, "`reduction` of LiftedStructureLoss has no meaning"),
        ({"form": "modified", "incomplete": "count"}, "`incomplete` of"),
        ({"form": "modified", "beta": 0.0}, "above 0"),
        ({"distance": "cosine"}, "one of distance, squared_distance"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings_, message):
    with pytest.raises(InputError, match=message):
        LiftedStructureLoss(**settings_)


def test_repr_tells_the_settings_of_the_form():
    assert "form='original', margin=1.0" in repr(LiftedStructureLoss())
    assert "alpha=2.0, beta=40.0, epsilon=None" in repr(LiftedStructureLoss("modified"))
    assert "incomplete='count'" in repr(LiftedStructureLoss("generalized", incomplete="count"))

"""Binomial deviance and hard mining losses against plain loops over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.losses import BinomialDevianceLoss, HardMiningLoss


def mean(values):
    return sum(values) / len(values) if values else 0.0


def by_loops(x, labels, refs, ref_labels, own, loss):
    x, refs = x / x.norm(dim=1, keepdim=True), refs / refs.norm(dim=1, keepdim=True)
    similarity, labels, ref_labels = (x @ refs.T).tolist(), labels.tolist(), ref_labels.tolist()
    if isinstance(loss, HardMiningLoss):
        costs = lambda s: 1 - s, lambda s: s
    else:
        above, below = (2 / loss.alpha, 2 / loss.beta) if loss.scaled else (1, 1)
        costs = (
            lambda s: above * math.log1p(math.exp(-loss.alpha * (s - loss.base))),
            lambda s: below * math.log1p(math.exp(loss.beta * (s - loss.base))),
        )
    total, every = 0.0, ([], [])
    for i, row in enumerate(similarity):
        positives, negatives = (
            [s for j, s in enumerate(row) if j != own[i] and (ref_labels[j] == labels[i]) == same]
            for same in (True, False)
        )
        for side, cost, values in zip(every, costs, (positives, negatives)):
            side.extend(map(cost, values))
        if not positives or not negatives:
            continue
        if loss.epsilon is not None:
            least, most = min(positives), max(negatives)
            positives = [s for s in positives if s - loss.epsilon < most]
            negatives = [s for s in negatives if s + loss.epsilon > least]
        total += mean([costs[0](s) for s in positives]) + mean([costs[1](s) for s in negatives])
    if getattr(loss, "reduction", "anchors") == "pairs":
        return mean(every[0]) + mean(every[1])
    return total / len(similarity)


LOSSES = st.one_of(
    st.builds(
        BinomialDevianceLoss,
        st.sampled_from([2.0, 5.0]),
        st.sampled_from([40.0, 10.0]),
        st.sampled_from([0.5, 0.3]),
        st.sampled_from([None, 0.1, 0.5]),
        st.booleans(),
    ),
    st.builds(BinomialDevianceLoss, scaled=st.booleans(), reduction=st.just("pairs")),
    st.builds(HardMiningLoss, st.sampled_from([0.0, 0.1, 0.5])),
)


@given(LOSSES, st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 10), st.integers(1, 4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_equals_the_loops(loss, seed, n, m, classes, copies):
    generator = torch.Generator().manual_seed(seed)
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    if copies and loss.epsilon != 0:  # with no slack, rounding decides between copies of two classes
        x[n - 1], refs[m - 1] = x[0], x[0]
    assert loss(x, labels).item() == pytest.approx(by_loops(x, labels, x, labels, range(n), loss), abs=1e-9)
    own = torch.randint(-1, m, (n,), generator=generator)
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), loss)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, abs=1e-9)


def test_steep_slopes_do_not_overflow():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]], requires_grad=True)
    value = BinomialDevianceLoss(alpha=500.0, beta=500.0)(x, torch.tensor([0, 1, 0]))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BinomialDevianceLoss(beta=0), "above 0"),
        (lambda: BinomialDevianceLoss(reduction="pair"), "Did you mean 'pairs'"),
        (lambda: BinomialDevianceLoss(epsilon=0.1, reduction="pairs"), "Use reduction='anchors'"),
        (lambda: HardMiningLoss(-0.1), "at least 0"),
    ],
)
def test_wrong_option_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()

"""RankedListLoss against a loop over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.losses import RankedListLoss


def by_loops(x, labels, refs, ref_labels, own, margin, alpha, sharp_n, sharp_p, imbalance):
    rows, others = ([[v / math.hypot(*row) for v in row] for row in r.tolist()] for r in (x, refs))
    total = 0.0
    for i, a in enumerate(rows):
        shown = [j for j in range(len(others)) if own[i] != j]
        sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
        for j in shown:
            positive, distance = bool(labels[i] == ref_labels[j]), math.dist(a, others[j])
            excess = distance - (alpha - margin) if positive else alpha - distance
            if excess > 0 and distance > 1e-7:
                weight = math.exp((sharp_p if positive else sharp_n) * excess)
                sums[positive][0] += weight * excess
                sums[positive][1] += weight
        least = 1e-5 * (len(shown) + 1)
        near, far = (sums[side][0] / (sums[side][1] + least) for side in (True, False))
        total += (1 - imbalance) * near + imbalance * far
    return total / len(rows)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_equals_the_loop_over_pairs(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, m, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    parameters = data.draw(
        st.sampled_from([(0.4, 1.2, 10.0, 0.0, 0.5), (1.0, 1.0, 3.0, 2.0, 0.3), (0.0, 2.0, 0.0, 5.0, 0.9)])
    )
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    if data.draw(st.booleans()):
        x[-1] = x[0]
    loss = RankedListLoss(*parameters)
    expected = by_loops(x, labels, x, labels, range(n), *parameters)
    assert loss(x, labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    own = torch.randint(-1, m, (n,), generator=generator)
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), *parameters)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_worst_negatives_weigh_most(random_batch):
    """With growing sharpness the negatives' half goes from their mean excess to the largest."""
    x, labels = random_batch(0)
    flat, sharp = (RankedListLoss(0.0, 2.0, Tn=t, imbalance=1.0)(x, labels).item() for t in (0.0, 200.0))
    unit = torch.nn.functional.normalize(x, dim=1)
    distance = torch.cdist(unit, unit).masked_fill(labels[:, None] == labels, float("nan"))
    assert flat == pytest.approx((2 - distance.nanmean(1)).mean().item(), rel=1e-3)
    nearest = distance.nan_to_num(9.0).amin(1)
    assert sharp == pytest.approx((2 - nearest).mean().item(), rel=1e-2)


def test_negative_that_is_a_copy_is_left_out():
    x = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    value = RankedListLoss()(x, torch.tensor([0, 1]))
    value.backward()
    assert value.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"margin": 1.5}, "`margin` between 0 and `alpha`; got alpha=1.2, margin=1.5"),
        ({"alpha": 3.0}, "at most 2"),
        ({"Tn": -1.0}, "`Tn` and `Tp`"),
        ({"imbalance": 1.5}, "`imbalance`"),
    ],
)
def test_wrong_option_is_named(settings_, message):
    with pytest.raises(InputError, match=message):
        RankedListLoss(**settings_)


def test_repr_tells_the_settings():
    assert "margin=0.4, alpha=1.2, Tn=10.0, Tp=0.0, imbalance=0.5" in repr(RankedListLoss())

"""IntraPairVarianceLoss against a loop over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.losses import IntraPairVarianceLoss


def by_loops(x, labels, refs, ref_labels, own, pos_eps, neg_eps):
    rows, others = ([[v / math.hypot(*row) for v in row] for row in r.tolist()] for r in (x, refs))
    halves = {True: [], False: []}
    for i, a in enumerate(rows):
        for j, b in enumerate(others):
            if own[i] != j:
                halves[bool(labels[i] == ref_labels[j])].append(sum(p * q for p, q in zip(a, b)))
    total = 0.0
    for positive, values in halves.items():
        if values:
            mean = sum(values) / len(values)
            bound, sign = ((1 - pos_eps) * mean, -1) if positive else ((1 + neg_eps) * mean, 1)
            total += sum(max(0.0, sign * (s - bound)) ** 2 for s in values) / len(values)
    return total


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_equals_the_loop_over_pairs(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, m, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    parameters = data.draw(st.sampled_from([(0.01, 0.01), (0.0, 0.3), (0.5, 0.0)]))
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    loss = IntraPairVarianceLoss(*parameters)
    expected = by_loops(x, labels, x, labels, range(n), *parameters)
    assert loss(x, labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    own = torch.randint(-1, m, (n,), generator=generator)
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), *parameters)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_halves_stand_alone(random_batch):
    """One class has no negatives, singletons no positives: the other half still counts."""
    x, _ = random_batch(0)
    loss = IntraPairVarianceLoss()
    assert loss(x, torch.zeros(10, dtype=torch.long)).item() > 0
    assert loss(x, torch.arange(10)).item() > 0


def test_wrong_option_is_named():
    with pytest.raises(InputError, match=r"at least 0; got -0\.1 and 0\.01"):
        IntraPairVarianceLoss(pos_eps=-0.1)


def test_repr_tells_the_settings():
    assert "pos_eps=0.01, neg_eps=0.2" in repr(IntraPairVarianceLoss(neg_eps=0.2))

"""Streamed equals dense, in value and in every gradient, for every loss and every shape."""

from __future__ import annotations

from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from deepmetric.losses.streamed import Comparison, operator

NAMES = """contrastive cosine|contrastive linear|contrastive Hadsell|triplet all|triplet all distance
triplet all cosine|triplet all soft|triplet all soft, not normalised|triplet band|triplet band soft
triplet hard band|triplet semi-hard|triplet hard|triplet hard soft|lifted|lifted general|lifted Deep_Metric|binomial
margin|NCA|NCA kNN|multi-similarity|multi-similarity, unmined|multi-similarity, steep|N-pairs|NT-Xent|SupCon|circle
tuplet margin|intra-pair variance|angular|ranked list|hard mining|binomial, mined|general pair weighting""".replace(
    "\n", "|"
).split("|")
IN_BATCH = {"lifted"}
NEEDS_LIST = {"triplet", "lifted", "NCA kNN", "N-pairs", "angular"}


def problem(seed: int, n: int, m: int, classes: int, own: bool) -> tuple:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=g)
    if not m:
        return x, labels, None, labels, torch.arange(n) if own else None
    refs = torch.randn(m, 5, generator=g, dtype=torch.float64)
    ref_labels = torch.randint(classes, (m,), generator=g)
    where = torch.randint(-1, m, (n,), generator=g) if own else None
    if where is not None:  # own copies are copies; labels differ here and there all the same
        refs[where[where >= 0]] = x[where >= 0]
    return x, labels, refs, ref_labels, where


def value_and_gradients(
    build, loss, name: str, kind: str, normalize: bool, given: tuple, **how
) -> list[Tensor]:
    x, labels, refs, ref_labels, own = given
    x = x.clone().requires_grad_()
    leaves = [x]
    if refs is None:
        refs = x
    else:
        refs = refs.clone().requires_grad_()
        leaves.append(refs)
    arguments = []
    if name == "margin":
        beta = torch.linspace(0.9, 1.3, int(labels.max()) + 1, dtype=torch.float64).requires_grad_()
        leaves.append(beta)
        arguments.append(beta[labels])
    value = loss(build(x, labels, refs, ref_labels, own, kind=kind, normalize=normalize, **how), *arguments)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros(1) if g is None else g for g in gradients)]


def test_every_form_is_named_here(forms: ModuleType) -> None:
    assert set(NAMES) == set(forms.FORMS)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 14),
    m=st.integers(0, 40),
    classes=st.integers(1, 8),
    own=st.booleans(),
    width=st.sampled_from([1, 3, 16, 64, None]),
    listed=st.sampled_from([0, 2**20]),
    side_by_side=st.booleans(),
)
def test_loss(dense, forms, name, seed, n, m, classes, own, width, listed, side_by_side) -> None:
    kind, normalize, loss = forms.FORMS[name]
    if name in IN_BATCH:
        m = 0
    given = problem(seed, n, m, classes, own or m == 0)
    with patch.object(operator, "SIDE_BY_SIDE", 256 if side_by_side else 0):
        streamed = value_and_gradients(
            Comparison, loss, name, kind, normalize, given, width=width, listed=listed
        )
    truth = value_and_gradients(dense, loss, name, kind, normalize, given)
    for ours, theirs in zip(streamed, truth):
        assert_close(ours, theirs, atol=1e-9, rtol=1e-8, equal_nan=True)

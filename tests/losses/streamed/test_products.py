"""Sums of products of two ends: equal to every triangle written out, however the ends are cut into chunks."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import normalize
from torch.testing import assert_close

from deepmetric.losses import AngularLoss
from deepmetric.losses.angular import _pair_by_pair
from deepmetric.losses.inputs import checked_batch
from deepmetric.losses.streamed import Comparison, products
from deepmetric.losses.streamed.ends import Ends
from deepmetric.losses.streamed.products import triangle_softplus


def drawn(seed: int, n: int, m: int, weights: list[float], d: int = 4) -> tuple[Tensor, ...]:
    """Rows and labels; class c is drawn with a weight."""
    g = torch.Generator().manual_seed(seed)
    x, refs = (torch.randn(rows, d, generator=g, dtype=torch.float64) for rows in (n, m))
    labels, ref_labels = (
        torch.multinomial(torch.tensor(weights), rows, True, generator=g)
        if rows
        else torch.zeros(0, dtype=torch.int64)
        for rows in (n, m)
    )
    return x, labels, refs, ref_labels


def every_triangle(x, labels, refs, ref_labels, own, scale: float, by: float) -> Tensor:
    """The sum over pairs, with thresholds of ``by`` times their values."""
    itself = refs is x
    x = normalize(x)
    refs = x if itself else normalize(refs)
    same = labels[:, None] == ref_labels
    mine = torch.zeros_like(same) if own is None else own[:, None] == torch.arange(len(refs))
    anchor, positive = (same & ~mine).nonzero().unbind(1)
    values = x @ refs.T
    exponent = scale * (values[anchor] + refs[positive] @ refs.T) - by * values[anchor, positive][:, None]
    return torch.log1p(torch.where((~same & ~mine)[anchor], exponent.exp(), 0).sum(1)).sum()


def by_products(x, labels, refs, ref_labels, own, scale: float, by: float, **how) -> Tensor:
    pairs = Comparison(x, labels, refs, ref_labels, own, **how)
    return triangle_softplus(pairs, scale, by * pairs.positive_list.values)[0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 14),
    m=st.integers(0, 40),
    # A class of nearly everything among small ones; classes alike; one class.
    weights=st.sampled_from([[90.0, 2.0, 1.0, 1.0], [1.0] * 7, [1.0]]),
    against=st.sampled_from(["itself", "references", "constant references", "copies"]),
    width=st.sampled_from([1, 5, 64, None]),
    listed=st.sampled_from([0, 30, 2**18]),
    kept=st.sampled_from([0, 1000, 2**25]),
    most=st.sampled_from([1, 5, 1024]),
    threads=st.sampled_from([1, 3]),
)
def test_equals_every_triangle(seed, n, m, weights, against, width, listed, kept, most, threads) -> None:
    x, labels, refs, ref_labels = drawn(seed, n, m, weights)
    own = None
    if against == "copies":  # one of another label, one whose row has changed, one that is not there
        refs, ref_labels = torch.cat([refs, x]), torch.cat([ref_labels, labels])
        own = torch.arange(n) + m
        refs[own[1:2]], ref_labels[own[2:3]], own[3:4] = 1.0, 9, -1
    constant = against in ("constant references", "copies")
    results = []
    for form, how in ((by_products, {"width": width, "listed": listed}), (every_triangle, {})):
        leaf, r = x.clone().requires_grad_(), refs.clone().requires_grad_(not constant)
        if against == "itself":
            args, leaves = (leaf, labels, leaf, labels, torch.arange(n)), [leaf]
        else:
            args, leaves = (leaf, labels, r, ref_labels, own), [leaf] if constant else [leaf, r]
        with patch.multiple(products, KEPT=kept, FEWEST=1, MOST=most, threads=lambda like: threads):
            value = form(*args, scale=2.5, by=3.0, **how)
        results.append([value, *torch.autograd.grad(value, leaves)])
    for one, other in zip(*results):
        assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kept", [0, 2**25])
def test_gradcheck(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "KEPT", kept)
    x, labels, refs, ref_labels = drawn(0, 9, 20, [3.0, 1.0, 1.0])
    threshold = torch.linspace(-1, 3, 400, dtype=torch.float64)

    def against(x: Tensor, refs: Tensor, threshold: Tensor) -> Tensor:
        pairs = Comparison(x, labels, refs, ref_labels, None, width=7)
        return triangle_softplus(pairs, 1.5, threshold[: len(pairs.positive_list.ref)])[0]

    def itself(x: Tensor, threshold: Tensor) -> Tensor:
        pairs = Comparison(x, labels, x, labels, torch.arange(9), width=7)
        return triangle_softplus(pairs, 1.5, threshold[: len(pairs.positive_list.ref)])[0]

    x, refs, threshold = (t.clone().requires_grad_() for t in (x, refs, threshold))
    assert gradcheck(against, (x, refs, threshold), fast_mode=True)
    assert gradcheck(itself, (x, threshold), fast_mode=True)


@pytest.mark.parametrize(
    ("alpha", "dtype"),
    [(36.0, torch.float32), (69.0, torch.float32), (45.0, torch.float64), (82.0, torch.float64)],
)
def test_equals_pair_by_pair(alpha: float, dtype: torch.dtype) -> None:
    """Up to the angle where the loss changes from the one to the other; on opposite rows too, where terms are tiny."""
    x, labels, refs, ref_labels = drawn(1, 17, 4000, [1.0] * 200, d=3)
    refs = torch.cat([refs, -x]).to(dtype)
    ref_labels = torch.cat([ref_labels, torch.full_like(labels, 99)])
    loss, results = AngularLoss(alpha), []
    for together in (True, False):
        leaf = x.to(dtype).requires_grad_()
        batch = checked_batch(leaf, labels, refs, ref_labels)
        pairs = Comparison(*batch)
        tangent = torch.tensor(alpha, dtype=torch.float64).deg2rad().tan().square().item()
        assert pairs.metric(8 * tangent).in_range(dtype)
        if together:
            with patch("deepmetric.losses.angular._pair_by_pair", side_effect=AssertionError):
                value = loss(leaf, labels, refs, ref_labels)
        else:
            threshold = 2 * (1 + tangent) * pairs.positive_list.values
            total, number = _pair_by_pair(batch, pairs, 4 * tangent, threshold)
            value = total / number
        results.append((value, *torch.autograd.grad(value, leaf)))
    tolerance = 2e-4 if dtype == torch.float32 else 1e-9
    for one, other in zip(*results):
        assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("alpha", [71.0, 85.0])
def test_steep_angles_do_not_overflow(alpha: float) -> None:
    x, labels, refs, ref_labels = drawn(2, 17, 4000, [1.0] * 200)
    loss = AngularLoss(alpha)
    value = loss(x.float(), labels, refs.float(), ref_labels)
    assert_close(value, loss(x, labels, refs, ref_labels).float(), rtol=1e-4, atol=0)


def test_copies_of_anchors_in_a_memory_have_no_row_of_their_own() -> None:
    x, labels, refs, ref_labels = drawn(3, 12, 30, [1.0, 1.0, 1.0])
    x, refs = x.float(), torch.cat([refs, x]).float()
    given = labels, refs, torch.cat([ref_labels, labels]), torch.arange(12) + 30
    ends = Ends(Comparison(x.clone().requires_grad_(), *given))
    assert len(ends.rows) == len(refs)
    refs.requires_grad_()  # then a copy has a gradient of its own
    assert len(Ends(Comparison(x, *given)).rows) == len(refs) + 12


def test_chunks_are_whole_classes_and_those_of_one_shape_one_block() -> None:
    labels = torch.tensor([4, 4, 4, 4, 4, 4, 4, 1, 1, 2, 2, 3, 3, 0])  # class 0 has no pair
    x = torch.randn(14, 4)
    ends = Ends(Comparison(x, labels, x, labels, torch.arange(14)))
    assert ends.chunks(5) == [[(2, 2, 2, 0)], [(1, 2, 2, 0)], [(1, 7, 7, 0)]]
    assert ends.chunks(13) == [[(3, 2, 2, 0), (1, 7, 7, 0)]]


def test_nothing_of_a_memory_is_kept() -> None:
    x, labels, refs, ref_labels = drawn(4, 9, 40, [1.0, 1.0, 1.0])
    results = []
    for overwrite in (False, True):
        leaf, memory = x.clone().requires_grad_(), refs.clone()
        value = by_products(leaf, labels, memory, ref_labels, None, scale=2.0, by=1.0, width=8)
        if overwrite:
            memory.zero_()
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    assert_close(*results)


def test_a_compiled_caller_and_autocast() -> None:
    x, labels, refs, ref_labels = (
        t.float() if t.is_floating_point() else t for t in drawn(5, 9, 40, [1.0] * 4)
    )

    def step(x: Tensor) -> Tensor:
        return by_products(2 * x, labels, refs, ref_labels, None, scale=2.0, by=1.0, width=8) * 2

    values = []
    for form, autocast in ((step, False), (torch.compile(step, backend="aot_eager"), False), (step, True)):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = form(leaf)
        values.append((value, *torch.autograd.grad(value, leaf)))
    for other in values[1:]:
        assert_close(other, values[0])

"""One full matrix, for small batches, gives what tiles give."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from deepmetric.losses import ContrastiveLoss, MultiSimilarityLoss, TripletLoss
from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.dense import from_cosines, value_matrix
from deepmetric.losses.streamed.rows import cosines, unit_rows

DOUBLE = torch.float64


def drawn(n: int = 12, m: int = 20, classes: int = 4):
    g = torch.Generator().manual_seed(0)
    x, refs = torch.randn(n, 5, generator=g, dtype=DOUBLE), torch.randn(m, 5, generator=g, dtype=DOUBLE)
    # One anchor without positives; one of whose class all references of a few are.
    labels, ref_labels = torch.arange(n) % classes, torch.randint(1, classes, (m,), generator=g)
    return x, labels, refs, ref_labels


@pytest.mark.parametrize("loss", [ContrastiveLoss(), MultiSimilarityLoss(), TripletLoss(mining="all")])
def test_references_that_are_the_embeddings_are_no_batch_with_itself(loss) -> None:
    """Unless `self_index` says so: then where it says."""
    x, labels, *_ = drawn()
    for own in (None, torch.arange(12), torch.arange(12).flip(0), torch.full((12,), -1)):
        expected = loss(x, labels, x.clone(), labels.clone(), own)
        assert_close(loss(x, labels, x, labels, own), expected)
    assert_close(loss(x, labels, x, labels, torch.arange(12)), loss(x, labels))


def test_cosines_are_the_products_of_unit_rows() -> None:
    x = torch.randn(6, 4, dtype=DOUBLE)
    x[2] = 0
    weights = torch.randn(6, 6, dtype=DOUBLE)
    found = []
    for form in (cosines, lambda rows: unit_rows(rows) @ unit_rows(rows).T):
        leaf = x.clone().requires_grad_()
        (form(leaf) * weights).sum().backward()
        found.append((form(x), leaf.grad))
    assert_close(*found)
    assert torch.autograd.gradcheck(cosines, torch.randn(3, 4, dtype=DOUBLE, requires_grad=True))


@pytest.mark.parametrize("kind", ["squared", "distance"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_distances_of_cosines(kind, dtype) -> None:
    """As of rows, 0 with derivative 0 below rounding, and NaN where a product is."""
    x, y = (normalize(torch.randn(rows, 8, dtype=dtype)) for rows in (6, 9))
    assert_close(from_cosines(x @ y.T, kind), value_matrix(x, y, kind, unit=False))
    product = torch.tensor([1.0, 1 + 1e-7, 1 - 1e-7, 0.5], dtype=dtype, requires_grad=True)
    value = from_cosines(product, kind)
    value.sum().backward()
    assert product.grad is not None
    near = dtype == torch.float32  # to a double 1e-7 is far
    assert (value == 0).tolist() == [True, True, near, False]
    assert product.grad[:2].tolist() == [0, 0]
    assert product.grad[3] == (-2 if kind == "squared" else -1)
    assert from_cosines(torch.tensor([torch.nan]), kind).isnan().all()


@pytest.mark.parametrize("kind", ["dot", "distance"])
@pytest.mark.parametrize("scale", [3.0, -40.0])
@pytest.mark.parametrize("beyond", [-torch.inf, 0.3, torch.inf])
def test_log_sum_exp_beyond_any_value(kind, scale: float, beyond: float) -> None:
    x, labels, refs, ref_labels = drawn()
    bounds = torch.full((12,), beyond, dtype=DOUBLE)
    found = []
    for width in (None, 7):
        leaf = x.clone().requires_grad_()
        c = Comparison(leaf, labels, refs, ref_labels, None, kind=kind, width=width)
        parts = []
        for side in (c.negatives, c.positives):
            parts.append(side.logsumexp(scale, beyond=bounds))
            parts.append(side.logsumexp(fn=lambda v: scale * v, beyond=None))
        parts += c.negatives.logsumexp_and_hardest(scale, beyond=bounds)
        value = torch.stack(parts)
        value.mul(torch.arange(1, 13)).masked_fill(value.isinf(), 0).sum().backward()
        value.nan_to_num(neginf=0, posinf=0).sum()
        found.append((value, leaf.grad))
    assert_close(*found)


def test_what_is_infinite_at_other_pairs_is_left_out() -> None:
    """A function of a user's own may be infinite at an anchor's distance from itself."""
    x, labels, *_ = drawn()
    found = []
    for width in (None, 5):
        c = Comparison(x, labels, x, labels, torch.arange(12), kind="distance", width=width)
        found.append([c.negatives.sum(lambda v: 1 / v), c.negatives.logsumexp(fn=lambda v: 1 / v)])
    assert torch.stack(found[0]).isfinite().all()
    assert_close(*found)


@pytest.mark.parametrize("width", [None, 3])
def test_log_sum_exp_of_minus_infinity_alone(width) -> None:
    x, labels, refs, ref_labels = drawn()
    c = Comparison(x, labels, refs, ref_labels + 9, None, width=width)
    assert c.negatives.logsumexp(fn=lambda v: torch.full_like(v, -torch.inf)).tolist() == [-torch.inf] * 12


def test_minus_infinity_alone_has_no_gradient() -> None:
    x, labels, refs, ref_labels = drawn()
    x.requires_grad_()
    c = Comparison(x, labels, refs, ref_labels + 9, None)
    value = c.negatives.logsumexp(fn=lambda v: v - torch.inf)
    (gradient,) = torch.autograd.grad(torch.where(value.isinf(), 0, value).sum(), x)
    assert not gradient.any()


@pytest.mark.parametrize("width", [None, 7])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("above", [False, True])
def test_no_hinge_reaches_beyond_infinity(width, squared: bool, above: bool) -> None:
    """What the extreme of no pairs is."""
    x, labels, refs, ref_labels = drawn()
    x.requires_grad_()
    never = torch.inf if above else -torch.inf
    c = Comparison(x, labels, refs, ref_labels, None, width=width)
    for side, pairs in ((c.positives, c.positive_count), (c.negatives, c.negative_count)):
        for bound in (never, torch.full((12,), never, dtype=DOUBLE)):
            value, count = side.hinge_sum(bound, above=above, squared=squared)
            assert not value.any()
            assert not count.any()
            (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
            assert not gradient.any()
            _, count = side.hinge_sum(-bound, above=above, squared=squared)
            assert count.tolist() == pairs.tolist()


@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize("above", [False, True])
def test_steep_hinges_see_their_own_pairs_alone(width, above: bool) -> None:
    """The exponential of a hinge may be infinite at a pair of the other sort."""
    x = torch.tensor([[1.0, 0.0], [0.999, 0.04], [0.0, 1.0], [-1.0, 0.1]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, 0] if not above else [0, 0, 0, 1])
    c = Comparison(x, labels, x, labels, torch.arange(4), kind="distance", width=width)
    side = c.positives if above else c.negatives
    weighted, total = side.exponential_hinge(80.0, 0.8 if above else 2.0, above=above)
    (weighted / (total + 1e-5)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()

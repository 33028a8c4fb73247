"""N-pairs, NT-Xent, SupCon, circle, tuplet margin and angular losses against loops over pairs, in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.losses import (
    AngularLoss,
    CircleLoss,
    CrossBatchMemory,
    NPairsLoss,
    NTXentLoss,
    SupConLoss,
    TupletMarginLoss,
)


def dot(a, b):
    return sum(p * q for p, q in zip(a, b))


def unit(rows):
    return [[v / math.hypot(*row) for v in row] for row in rows]


def mean(costs):
    costs = list(costs)
    return sum(costs) / max(len(costs), 1)


def of_each_pair(cost):
    """The mean over all pairs of an anchor and a positive of cost(anchor, positive, negatives)."""

    def loss(problem):
        return mean(cost(a, p, negatives) for a, positives, negatives in problem for p in positives)

    return loss


def ntxent(t):
    return of_each_pair(lambda a, p, ns: math.log(1 + sum(math.exp((dot(a, n) - dot(a, p)) / t) for n in ns)))


def tuplet(degrees, s):
    def cost(a, p, negatives):
        relaxed = math.cos(math.acos(max(-1, min(1, dot(a, p)))) - math.radians(degrees))
        return math.log(1 + sum(math.exp(s * (dot(a, n) - relaxed)) for n in negatives))

    return of_each_pair(cost)


def angular(degrees):
    t = math.tan(math.radians(degrees)) ** 2

    def cost(a, p, negatives):
        middle = [u + v for u, v in zip(a, p)]
        return math.log(
            1 + sum(math.exp(4 * t * dot(middle, n) - 2 * (1 + t) * dot(a, p)) for n in negatives)
        )

    return of_each_pair(cost)


def supcon(t, base, reduction):
    def loss(problem):
        costs = []
        for a, positives, negatives in problem:
            total = sum(math.exp(dot(a, k) / t) for k in positives + negatives)
            if positives:
                costs.append(t / (base or t) * mean(math.log(total) - dot(a, p) / t for p in positives))
            elif reduction == "anchors":
                costs.append(0.0)
        return mean(costs)

    return loss


def circle_sums(problem, m, g):
    for a, positives, negatives in problem:
        near = [dot(a, p) for p in positives]
        far = [dot(a, n) for n in negatives]
        yield (
            sum(math.exp(-g * max(0, 1 + m - s) * (s - (1 - m))) for s in near),
            sum(math.exp(g * max(0, s + m) * (s - m)) for s in far),
        )


def circle(m, g):
    return lambda problem: mean(math.log(1 + p * n) for p, n in circle_sums(problem, m, g) if p and n)


def circle_of_the_batch(m, g):
    def loss(problem):
        positives, negatives = zip(*circle_sums(problem, m, g))
        share = 0.5 if problem.itself else 1.0
        return math.log(1 + share * sum(positives) * share * sum(negatives))

    return loss


class Problem(list):
    """(anchor, its positives, its negatives) of each anchor, rows as lists of numbers."""

    def __init__(self, x, labels, refs, ref_labels, own, *, normalize=True, itself=False):
        self.itself = itself
        rows, others = (unit(r.tolist()) if normalize else r.tolist() for r in (x, refs))
        for i, (a, label) in enumerate(zip(rows, labels.tolist())):
            shown = [(r, c) for j, (r, c) in enumerate(zip(others, ref_labels.tolist())) if own[i] != j]
            self.append((a, [r for r, c in shown if c == label], [r for r, c in shown if c != label]))


CASES = {
    "npairs": (NPairsLoss("all"), ntxent(1.0)),
    "npairs of unit rows": (NPairsLoss("all", normalize=True), ntxent(1.0)),
    "ntxent": (NTXentLoss(0.2), ntxent(0.2)),
    "supcon": (SupConLoss(0.3), supcon(0.3, None, "paired")),
    "supcon anchors": (SupConLoss(0.3, 0.2, "anchors"), supcon(0.3, 0.2, "anchors")),
    "circle": (CircleLoss(0.25, 10.0), circle(0.25, 10.0)),
    "circle batch": (CircleLoss(0.4, 5.0, "batch"), circle_of_the_batch(0.4, 5.0)),
    "tuplet margin": (TupletMarginLoss(10.0, 20.0), tuplet(10.0, 20.0)),
    "angular": (AngularLoss(36.0), angular(36.0)),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_equals_the_loop_over_pairs(name, data):
    loss, by_loops = CASES[name]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, m, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    normalize = getattr(loss, "normalize", True)
    inside = Problem(x, labels, x, labels, range(n), normalize=normalize, itself=True)
    assert loss(x, labels).item() == pytest.approx(by_loops(inside), rel=1e-9, abs=1e-12)
    own = torch.randint(-1, m, (n,), generator=generator)
    if m == n:
        own[0] = -1
    against = Problem(x, labels, refs, ref_labels, own.tolist(), normalize=normalize)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(
        by_loops(against), rel=1e-9, abs=1e-12
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_first_pairs_of_npairs(data):
    """One pair a class: the first anchor with the first reference that is not its copy."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, m, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) * 3 - 4 for k in (n, m))
    own = torch.randint(-1, m, (n,), generator=generator)
    for batch in ((x, labels, x, labels, torch.arange(n)), (x, labels, refs, ref_labels, own)):
        _, y, others, other_labels, copies = batch
        pairs = []
        for label in sorted(set(y.tolist())):
            i = y.tolist().index(label)
            found = [
                j for j, other in enumerate(other_labels.tolist()) if other == label and j != int(copies[i])
            ]
            if found:
                pairs.append((i, found[0]))
        expected = mean(
            math.log(sum(math.exp(float(x[i] @ others[k] - x[i] @ others[j])) for _, k in pairs))
            for i, j in pairs
        )
        assert NPairsLoss()(*batch).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert NPairsLoss()(x, labels).item() == NPairsLoss()(x, labels, x, labels, torch.arange(n)).item()


def test_first_pairs_have_a_gradient_and_other_items_none(random_batch):
    x, labels = random_batch(0, n=9)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: NPairsLoss(normalize=True)(x, labels), (x,))
    (gradient,) = torch.autograd.grad(NPairsLoss()(x, labels), x)
    labels = labels.tolist()
    used = [labels.count(label) > 1 and labels[:i].count(label) < 2 for i, label in enumerate(labels)]
    assert [bool(row.any()) for row in gradient] == used
    empty = NPairsLoss()(x[:0], torch.tensor(labels[:0], dtype=torch.long))
    assert empty.item() == 0
    empty.backward()


def test_penalty_on_norms(random_batch):
    x, labels = random_batch(1)
    penalty = NPairsLoss(l2_weight=0.1)(x, labels) - NPairsLoss()(x, labels)
    assert penalty.item() == pytest.approx(0.1 * x.square().sum().item() / 10)


def test_circle_s_weights_are_constants(random_batch):
    """The gradient is that of the loss with the weights taken from a copy."""
    x, labels = random_batch(2)
    x = torch.nn.functional.normalize(x, dim=1).requires_grad_()
    m, g = 0.25, 6.0
    (gradient,) = torch.autograd.grad(CircleLoss(m, g)(x, labels), x)
    unit_rows = torch.nn.functional.normalize(x, dim=1)
    s = unit_rows @ unit_rows.T
    a_p, a_n = (1 + m - s).relu().detach(), (s + m).relu().detach()
    same = labels[:, None] == labels
    positive, negative = same & ~torch.eye(10, dtype=torch.bool), ~same
    costs = [
        torch.log1p(
            (g * a_n * (s - m))[i][negative[i]].exp().sum()
            * (-g * a_p * (s - (1 - m)))[i][positive[i]].exp().sum()
        )
        for i in range(10)
    ]
    (wanted,) = torch.autograd.grad(torch.stack(costs).mean(), x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [loss for loss, _ in CASES.values()], ids=list(CASES))
def test_an_anchor_that_lacks_a_side(loss):
    """Without negatives only SupCon's softmax over the positives is left; without positives nothing."""
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    alone, apart = loss(x, torch.zeros(3, dtype=torch.long)), loss(x, torch.arange(3))
    assert (alone.item() > 0) == isinstance(loss, SupConLoss)
    assert apart.item() == 0
    for value in (alone, apart):
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "loss", [NTXentLoss(0.001), SupConLoss(0.001), CircleLoss(gamma=4000.0), TupletMarginLoss(scale=2000.0)]
)
def test_sharpness_does_not_overflow(loss):
    """Exponentials of a thousand, in float32, over one matrix and over tiles."""
    generator = torch.Generator().manual_seed(0)
    for m in (6, 12000):
        x = torch.randn(8, 4, generator=generator, requires_grad=True)
        refs = torch.randn(m, 4, generator=generator)
        value = loss(x, torch.arange(8) % 3, refs, torch.arange(m) % 3)
        value.backward()
        assert value.isfinite()
        assert value > 100
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_a_positive_that_is_an_exact_copy():
    """Tuplet margin: the angle 0 takes no gradient, its value counts; NT-Xent is as with any positive."""
    x = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    value = TupletMarginLoss(5.0, 8.0)(x, labels)
    assert value.item() == pytest.approx(
        math.log1p(math.exp(8 * (0.8 - math.cos(math.radians(5))))), rel=1e-9
    )
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NTXentLoss(0.0), "`temperature` of NTXentLoss must be above 0; got 0.0"),
        (lambda: SupConLoss(0.1, -1.0), "`temperature` and `base_temperature`"),
        (lambda: SupConLoss(reduction="pairs"), "one of paired, anchors. Did you mean 'paired'"),
        (lambda: CircleLoss(gamma=-1.0), "`gamma` of CircleLoss"),
        (lambda: CircleLoss(over="batches"), "Did you mean 'batch'"),
        (lambda: TupletMarginLoss(margin=120.0), "between 0 and 90 degrees; got 120.0"),
        (lambda: TupletMarginLoss(scale=0.0), "`scale` of TupletMarginLoss"),
        (lambda: AngularLoss(90.0), "above 0 and below 90 degrees; got 90.0"),
        (lambda: NPairsLoss("every"), "`pairs` of NPairsLoss is 'every'; expected one of first, all"),
        (lambda: NPairsLoss(l2_weight=-0.1), "`l2_weight` of NPairsLoss"),
    ],
)
def test_wrong_option_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("loss", [NPairsLoss(), *(loss for loss, _ in CASES.values())])
def test_in_a_memory_of_half_precision(loss, random_batch):
    """The memory's rows are neither of the anchors' dtype nor of unit length: as if they were converted first."""
    memory = CrossBatchMemory(loss, 4, 24, batch_weight=0.0, dtype="bfloat16")
    for seed in range(4):
        x, labels = random_batch(seed, n=10)
        value = memory(x.float().requires_grad_(), labels)
    stored = memory.embeddings.float()
    own = torch.tensor([(30 + i) % 24 for i in range(10)])
    wanted = loss(x.float(), labels, stored, memory.labels, own)
    torch.testing.assert_close(value.detach(), wanted)


def test_repr_tells_the_settings():
    shown = " ".join(repr(loss) for loss, _ in CASES.values())
    for setting in (
        "temperature=0.2",
        "base_temperature=0.2, reduction='anchors'",
        "m=0.4, gamma=5.0, over='batch'",
    ):
        assert setting in shown
    assert "margin=10.0, scale=20.0" in shown
    assert "pairs='all', normalize=True, l2_weight=0.0" in shown
    assert "alpha=36.0" in shown

"""Ranking losses against loops over queries, positives and items, in plain Python; blocks against one block."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses import (
    ContrastiveLoss,
    CrossBatchMemory,
    FastAPLoss,
    HistogramLoss,
    PairLoss,
    PNPLoss,
    PrecisionAtKLoss,
    RecallAtKLoss,
    ROADMAPLoss,
    SmoothAPLoss,
    SupAPLoss,
    similarity_mixup,
)
from deepmetric.losses.ranking import ranked


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def rankings(rows: Tensor, labels: Tensor, refs: Tensor, ref_labels: Tensor, own: list[int], count: bool):
    """Of every query: similarities to positives, to negatives, and to its own copy (None: it has none)."""
    rows, refs = (torch.nn.functional.normalize(t.detach()) for t in (rows, refs))
    for i in range(len(rows)):
        s = (refs @ rows[i]).tolist()
        others = [j for j in range(len(refs)) if j != own[i]]
        positive = [s[j] for j in others if ref_labels[j] == labels[i]]
        negative = [s[j] for j in others if ref_labels[j] != labels[i]]
        itself = s[own[i]] if own[i] >= 0 and ref_labels[own[i]] == labels[i] else None
        if count and itself is not None:
            positive.append(itself)
        yield positive, negative, itself


def smooth_ap(positive, negative, _, tau=0.1):
    total = 0.0
    for p, s in enumerate(positive):
        up = 1 + sum(sigmoid((t - s) / tau) for q, t in enumerate(positive) if q != p)
        total += up / (up + sum(sigmoid((t - s) / tau) for t in negative))
    return 1 - total / len(positive)


def sup_ap(positive, negative, _, tau=0.1, rho=3.0, delta=0.2, offset=1.2, start=0.5):
    def step(z):
        if z <= 0:
            return sigmoid(z / tau)
        return start + sigmoid(z / tau) if z <= delta else rho * (z - delta) + offset

    total = 0.0
    for s in positive:
        up = sum(t >= s for t in positive)
        total += up / (up + sum(step(t - s) for t in negative))
    return 1 - total / len(positive)


def pnp(f):
    def of(positive, negative, _, tau=0.1):
        return sum(f(sum(sigmoid((t - s) / tau) for t in negative)) for s in positive) / len(positive)

    return of


def recall_at_k(ks, count=False):
    def of(positive, negative, itself, tau=0.1):
        items = positive + negative + ([itself] if count and itself is not None else [])
        n = of.references
        recalls = []
        for k in (min(k, n) for k in ks):
            found = 0.0
            for s in positive:
                rank = 0.5 + sum(sigmoid((t - s) / tau) for t in items)  # 0.5: p with itself is σ(0)
                found += sigmoid(k - rank)
            recalls.append(min(found, k) / min(k, len(positive)))
        return 1 - sum(recalls) / len(recalls)

    return of


def fast_ap(positive, negative, _, bins=6):
    def shares(values):
        return [sum(max(0.0, 1 - abs((2 - 2 * s) * bins / 4 - k)) for s in values) for k in range(bins + 1)]

    up, total, above, seen = shares(positive), shares(positive + negative), 0.0, 0.0
    value = 0.0
    for here, everything in zip(up, total):
        above, seen = above + here, seen + everything
        value += here * above / seen if seen else 0.0
    return 1 - value / len(positive)


SUP = {"temperature": 0.1, "slope": 3.0, "delta": 0.2, "offset": 1.2}
CASES: dict[str, tuple[Callable, PairLoss, bool]] = {
    "smooth_ap": (smooth_ap, SmoothAPLoss(0.1), False),
    "smooth_ap counting": (smooth_ap, SmoothAPLoss(0.1, count_query=True), True),
    "sup_ap": (sup_ap, SupAPLoss(**SUP), False),
    "sup_ap counting": (sup_ap, SupAPLoss(**SUP, count_query=True), True),
    "pnp O": (pnp(lambda r: r), PNPLoss("O", 0.1), False),
    "pnp Iu": (pnp(lambda r: (1 + r) * math.log(1 + r)), PNPLoss("Iu", 0.1), False),
    "pnp Ib": (pnp(lambda r: (3 * r - math.log(1 + 3 * r)) / 9), PNPLoss("Ib", 0.1, b=3.0), False),
    "pnp Ds": (pnp(lambda r: math.log(1 + r)), PNPLoss("Ds", 0.1), False),
    "pnp Dq": (pnp(lambda r: 1 - (1 + r) ** -3), PNPLoss("Dq", 0.1, alpha=3.0), False),
    "recall": (recall_at_k([1, 3, 90]), RecallAtKLoss([1, 3, 90], 1.0, 0.1), False),
    "recall counting": (
        recall_at_k([1, 3], count=True),
        RecallAtKLoss([1, 3], 1.0, 0.1, count_query=True),
        False,
    ),
    "fast_ap": (fast_ap, FastAPLoss(6), False),
    "fast_ap counting": (fast_ap, FastAPLoss(6, count_query=True), True),
}


def by_loop(
    name: str, rows: Tensor, labels: Tensor, refs: Tensor, ref_labels: Tensor, own: list[int]
) -> float:
    reference, _, count = CASES[name]
    reference.references = len(refs)
    costs = [reference(*r) for r in rankings(rows, labels, refs, ref_labels, own, count) if r[0]]
    return sum(costs) / max(len(costs), 1)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), m=st.integers(0, 9), classes=st.integers(1, 5))
def test_equals_the_loop(name: str, seed: int, n: int, m: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    refs = torch.randn(m, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    ref_labels = torch.randint(classes, (m,), generator=generator)
    own = [-1] * n
    if m:  # the last reference is a copy of the first query
        refs[-1], ref_labels[-1], own[0] = rows[0], labels[0], m - 1
    loss = CASES[name][1]
    wanted = by_loop(name, rows, labels, refs, ref_labels, own)
    assert loss(rows, labels, refs, ref_labels, torch.tensor(own)).item() == pytest.approx(wanted, abs=1e-12)
    wanted = by_loop(name, rows, labels, rows, labels, list(range(n)))
    assert loss(rows, labels).item() == pytest.approx(wanted, abs=1e-12)


LOSSES = {
    **{name: loss for name, (_, loss, _) in CASES.items()},
    "precision": PrecisionAtKLoss(2, 1.0, 0.5),
    "histogram": HistogramLoss(9, "in_triplets"),
    "roadmap": ROADMAPLoss(SUP),
}


@pytest.mark.parametrize("name", LOSSES)
def test_blocks_equal_one_block(name, random_batch, monkeypatch) -> None:
    """Values and gradients are the same where each block is computed again in the backward pass."""
    loss = LOSSES[name]
    (rows, labels), (refs, ref_labels) = random_batch(0, n=14, copies=2), random_batch(1, n=9)
    rows.requires_grad_()
    refs.requires_grad_()
    own = torch.tensor([2, -1, 0] + [-1] * 11)
    for leaves, value in (
        ((rows,), lambda: loss(rows, labels)),
        ((rows, refs), lambda: loss(rows, labels, refs, ref_labels, own)),
    ):
        monkeypatch.setattr(ranked, "AT_ONCE", 10**9)
        whole = value()
        wanted = torch.autograd.grad(whole, leaves)
        monkeypatch.setattr(ranked, "AT_ONCE", 60)
        blocked = value()
        torch.testing.assert_close(blocked, whole)
        for ours, gradient in zip(torch.autograd.grad(blocked, leaves), wanted):
            torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_derivative(name, random_batch) -> None:
    rows, labels = random_batch(3, n=8)
    rows.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels), (rows,))


def test_gradients_keep_no_cubic_tensor(random_batch, monkeypatch) -> None:
    """What the graph keeps between forward and backward is of the size of the rows, not of comparisons."""
    monkeypatch.setattr(ranked, "AT_ONCE", 2000)
    rows, labels = random_batch(4, n=50, classes=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        SmoothAPLoss(0.1)(rows.requires_grad_(), labels)
    assert max(kept) <= rows.numel()


@pytest.mark.parametrize("name", LOSSES)
def test_a_query_of_many_positives_is_compared_in_parts(name, random_batch, monkeypatch) -> None:
    """Against a memory of few classes one query alone has more comparisons than may be held at once."""
    (rows, labels), (refs, ref_labels) = random_batch(0, n=3, classes=2), random_batch(1, n=60, classes=2)
    rows.requires_grad_()
    refs.requires_grad_()
    whole = LOSSES[name](rows, labels, refs, ref_labels)
    wanted = torch.autograd.grad(whole, (rows, refs))
    monkeypatch.setattr(ranked, "AT_ONCE", 200)
    held, gaps = [0], ranked.Block.gaps

    def watched(block: ranked.Block) -> tuple[Tensor, Tensor]:
        query, gap = gaps(block)
        held.append(gap.numel())
        return query, gap

    monkeypatch.setattr(ranked.Block, "gaps", watched)
    in_parts = LOSSES[name](rows, labels, refs, ref_labels)
    torch.testing.assert_close(in_parts, whole)
    for ours, gradient in zip(torch.autograd.grad(in_parts, (rows, refs)), wanted):
        torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-12)
    assert max(held) <= 2 * 200 + 60


@pytest.mark.parametrize("pairs", ["all", "in_triplets"])
def test_histogram_equals_the_loop(pairs, random_batch) -> None:
    rows, labels = random_batch(5, n=12, classes=3)
    labels = torch.cat([labels[:9], torch.tensor([100, 101, 102])])  # the last three have no positive
    unit = torch.nn.functional.normalize(rows)
    of: dict[bool, list[float]] = {True: [], False: []}
    for i in range(12):
        for j in range(i):
            if pairs == "all" or min(i, j) < 9:
                of[bool(labels[i] == labels[j])].append(float(unit[i] @ unit[j]))
    up, down = (
        [sum(max(0.0, 1 - abs(s + 1 - k / 5) * 5) for s in of[same]) / len(of[same]) for k in range(11)]
        for same in (True, False)
    )
    wanted = sum(d * sum(up[: k + 1]) for k, d in enumerate(down))
    assert HistogramLoss(10, pairs)(rows, labels).item() == pytest.approx(wanted, abs=1e-12)


def test_roadmap_is_the_sum_of_its_parts(random_batch) -> None:
    rows, labels = random_batch(6)
    parts = SupAPLoss(**SUP)(rows, labels), ContrastiveLoss("cosine_hinge", 0.9, 0.6, "nonzero")(rows, labels)
    torch.testing.assert_close(
        ROADMAPLoss(SUP, calibration_weight=0.5)(rows, labels), parts[0] + 0.5 * parts[1]
    )


def test_sup_ap_bounds_one_minus_average_precision(random_batch) -> None:
    for seed in range(20):
        rows, labels = random_batch(seed, n=12)
        hard = [
            1 - sum(sum(t >= s for t in up) / sum(t >= s for t in up + down) for s in up) / len(up)
            for up, down, _ in rankings(rows, labels, rows, labels, list(range(12)), count=False)
            if up
        ]
        assert SupAPLoss()(rows, labels).item() >= sum(hard) / len(hard) - 1e-9


def test_continuous_offset_joins_the_pieces() -> None:
    loss = SupAPLoss(offset=None)
    at = torch.tensor([loss.delta, loss.delta + 1e-9], dtype=torch.float64)
    assert loss._step(at, 0.0).diff().abs().item() < 1e-6


def test_mixup_lies_between_two_of_a_class(random_batch) -> None:
    rows, labels = random_batch(7, n=9)
    mixed, of = similarity_mixup(rows, labels)
    sizes = labels.unique(return_counts=True)[1]
    assert len(mixed) == 9 + int((sizes * (sizes - 1) // 2).sum())
    assert torch.equal(mixed[:9], rows)
    for row, label in zip(mixed[9:], of[9:]):
        members = rows[labels == label]
        reach = torch.cdist(row[None], members)[0]
        apart = torch.cdist(members, members)
        # On a segment: the distances to its ends add up to its length.
        assert any(
            abs(reach[a] + reach[b] - apart[a, b]) < 1e-9 for a in range(len(members)) for b in range(a)
        )


def test_simix_is_for_training_within_a_batch(random_batch) -> None:
    rows, labels = random_batch(8)
    loss, plain = RecallAtKLoss(simix=True), RecallAtKLoss()
    assert loss(rows, labels) != plain(rows, labels)
    assert loss.eval()(rows, labels) == plain(rows, labels)
    torch.manual_seed(0)
    value = loss.train()(rows, labels)
    torch.manual_seed(0)
    mixed, of = similarity_mixup(torch.nn.functional.normalize(rows), labels)
    # The rows on segments are shorter than 1 and stay so.
    assert (mixed[10:].norm(dim=1) < 1).all()
    assert value != plain(mixed, of)
    with pytest.raises(InputError, match="simix"):
        loss(rows, labels, rows, labels)


def test_in_a_memory(random_batch) -> None:
    for loss in (SmoothAPLoss(0.1), FastAPLoss(), HistogramLoss(), PNPLoss()):
        memory = CrossBatchMemory(loss, dim=4, size=20, batch_weight=0.0).double()
        for seed in range(2):
            rows, labels = random_batch(seed, n=10)
            value = memory(rows, labels)
        everything = torch.cat([random_batch(seed, n=10)[0] for seed in range(2)])
        every_label = torch.cat([random_batch(seed, n=10)[1] for seed in range(2)])
        wanted = loss(rows, labels, everything, every_label, torch.arange(10, 20))
        assert value.item() == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FastAPLoss(0), "`num_bins` of FastAPLoss must be at least 1; got 0"),
        (lambda: SmoothAPLoss(0.0), "`temperature` of SmoothAPLoss must be above 0"),
        (lambda: SupAPLoss(delta=0.0), "`delta` of SupAPLoss"),
        (lambda: SupAPLoss(slope=-1.0), "`slope` of SupAPLoss"),
        (lambda: ROADMAPLoss(calibration_weight=-1.0), "`calibration_weight`"),
        (lambda: RecallAtKLoss([]), "`ks` of RecallAtKLoss"),
        (lambda: RecallAtKLoss(5), "`ks` of RecallAtKLoss must be a list.*got 5"),
        (lambda: RecallAtKLoss([1, 2], [1.0]), "one for each of the 2 `ks`; got 1"),
        (lambda: RecallAtKLoss(rank_temperature=0.0), "above 0"),
        (lambda: HistogramLoss(pairs="triplets"), "Did you mean 'in_triplets'"),
        (lambda: HistogramLoss(0), "`num_bins` of HistogramLoss"),
        (lambda: PNPLoss("dq"), "`variant` of PNPLoss is 'dq'"),
        (lambda: PNPLoss(alpha=0.0), "above 0"),
        (lambda: PrecisionAtKLoss(0), "`k` of PrecisionAtKLoss"),
        (lambda: PrecisionAtKLoss(rank_temperature=0.0), "above 0"),
    ],
)
def test_wrong_option_is_named(build, message) -> None:
    with pytest.raises(InputError, match=message):
        build()

"""Miners against plain loops over the definitions, and what they promise beside that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses import mining
from deepmetric.losses.mining import blocks

Batch = tuple[Tensor, Tensor]
Pairs = set[tuple[int, int]]


class Loops:
    """A batch seen through Python lists: distances D[i][j], cosines S[i][j], positives P[i], negatives N[i]."""

    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        refs: Tensor | None = None,
        ref_labels: Tensor | None = None,
        own: Tensor | None = None,
        *,
        normalize: bool = True,
    ) -> None:
        if refs is None:
            refs, ref_labels, own = rows, labels, torch.arange(len(rows))
        assert ref_labels is not None
        of, n, m = (own if own is not None else torch.full((len(rows),), -1)).tolist(), len(rows), len(refs)
        unit = lambda x: (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300)).tolist()  # noqa: E731
        self.x, self.r = (unit(rows), unit(refs)) if normalize else (rows.tolist(), refs.tolist())
        self.S = [[sum(u * v for u, v in zip(a, b)) for b in unit(refs)] for a in unit(rows)]
        self.D = [[math.dist(a, b) for b in self.r] for a in self.x]
        y, z = labels.tolist(), ref_labels.tolist()
        self.P = [[j for j in range(m) if z[j] == y[i] and j != of[i]] for i in range(n)]
        self.N = [[j for j in range(m) if z[j] != y[i] and j != of[i]] for i in range(n)]
        self.n = n

    def triplets(self) -> Iterator[tuple[int, int, int]]:
        for i in range(self.n):
            for p in self.P[i]:
                for n in self.N[i]:
                    yield i, p, n


# Distances within this are ties; random rows have no others.
TIE = 1e-7


def tuples(*columns: Tensor) -> set[tuple[int, ...]]:
    rows = list(zip(*(column.tolist() for column in columns)))
    assert len(rows) == len(set(rows))
    return set(rows)


def both(found: mining.PairIndices) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    return tuples(*found[:2]), tuples(*found[2:])


def multi_similarity(at: Loops) -> Any:
    found = (set(), set())
    for i in range(at.n):
        if at.P[i] and at.N[i]:
            low, high = min(at.S[i][p] for p in at.P[i]), max(at.S[i][n] for n in at.N[i])
            found[0].update((i, p) for p in at.P[i] if at.S[i][p] - 0.15 < high)
            found[1].update((i, n) for n in at.N[i] if at.S[i][n] + 0.15 > low)
    return found


def pair_margin(at: Loops) -> Any:
    return (
        {(i, p) for i in range(at.n) for p in at.P[i] if at.D[i][p] > 0.7},
        {(i, n) for i in range(at.n) for n in at.N[i] if at.D[i][n] < 1.2},
    )


def pair_margin_cosine(at: Loops) -> Any:
    return (
        {(i, p) for i in range(at.n) for p in at.P[i] if at.S[i][p] < 0.6},
        {(i, n) for i in range(at.n) for n in at.N[i] if at.S[i][n] > 0.2},
    )


def hdc(at: Loops) -> Any:
    positive = sorted(((i, p) for i in range(at.n) for p in at.P[i]), key=lambda k: -at.D[k[0]][k[1]])
    negative = sorted(((i, n) for i in range(at.n) for n in at.N[i]), key=lambda k: at.D[k[0]][k[1]])
    return set(positive[: math.ceil(0.4 * len(positive))]), set(negative[: math.ceil(0.4 * len(negative))])


def band(kind: str, form: str) -> Callable[[Loops], Any]:
    def of(at: Loops) -> Any:
        def gap(i: int, p: int, n: int) -> float:
            if form == "cosine":
                return at.S[i][p] - at.S[i][n]
            power = 2 if form == "squared_distance" else 1
            return at.D[i][n] ** power - at.D[i][p] ** power

        def kept(g: float) -> bool:
            return {
                "all": g <= 0.3,
                "easy": g > 0.3,
                "hard": g <= TIE,
                "semihard": TIE < g <= 0.3,
            }[kind]

        return {t for t in at.triplets() if kept(gap(*t))}

    return of


def angular(at: Loops) -> Any:
    def angle(i: int, p: int, n: int) -> float:
        a, b, c = at.x[i], at.r[p], at.r[n]
        return math.degrees(
            math.atan2(math.dist(a, b), 2 * math.dist(c, [(u + v) / 2 for u, v in zip(a, b)]))
        )

    return {t for t in at.triplets() if angle(*t) > 30}


def n_hard(at: Loops) -> Any:
    found = set()
    for i in range(at.n):
        positive = sorted(at.P[i], key=lambda j: -at.D[i][j])[:2]
        negative = sorted(at.N[i], key=lambda j: at.D[i][j])[1:3]
        found |= {(i, p, n) for p in positive for n in negative}
    return found


def easy_hard(positive: str, negative: str) -> Callable[[Loops], Any]:
    def choose(at: Loops, i: int, of: list[int], furthest: bool) -> list[int]:
        return [(max if furthest else min)(of, key=lambda j: at.D[i][j])] if of else []

    def of(at: Loops) -> Any:
        found = (set(), set())
        for i in range(at.n):
            p = at.P[i] if positive == "all" else choose(at, i, at.P[i], positive == "hard")
            n = at.N[i] if negative == "all" else choose(at, i, at.N[i], negative == "easy")
            if positive == "semihard" and n:
                p = choose(at, i, [j for j in at.P[i] if at.D[i][j] < at.D[i][n[0]] - TIE], True)
            if negative == "semihard" and p:
                n = choose(at, i, [j for j in at.N[i] if at.D[i][j] > at.D[i][p[0]] + TIE], False)
            if "all" in (positive, negative) or (p and n):
                found[0].update((i, j) for j in p)
                found[1].update((i, j) for j in n)
        return found

    return of


MINERS: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Loops], Any]]] = {
    "multi_similarity": (mining.multi_similarity, {"epsilon": 0.15}, multi_similarity),
    "pair_margin": (mining.pair_margin, {"positive_margin": 0.7, "negative_margin": 1.2}, pair_margin),
    "pair_margin cosine": (
        mining.pair_margin,
        {"positive_margin": 0.6, "negative_margin": 0.2, "form": "cosine"},
        pair_margin_cosine,
    ),
    "hdc": (mining.hdc, {"share": 0.4}, hdc),
    "angular": (mining.angular, {"angle": 30}, angular),
    "n_hard": (mining.n_hard, {"positives": 2, "negatives": (2, 3)}, n_hard),
    **{
        f"triplet_margin {kind} {form}": (
            mining.triplet_margin,
            {"margin": 0.3, "kind": kind, "form": form},
            band(kind, form),
        )
        for kind in ("all", "easy", "hard", "semihard")
        for form in ("distance", "squared_distance", "cosine")
    },
    **{
        f"batch_easy_hard {p} {n}": (
            mining.batch_easy_hard,
            {"positive": p, "negative": n},
            easy_hard(p, n),
        )
        for p in ("all", "easy", "hard", "semihard")
        for n in ("all", "easy", "hard", "semihard")
        if "semihard" not in (p, n) or not {p, n} <= {"all", "semihard"}
    },
}
NOT_OF_GIVEN_ROWS = ("multi_similarity", "cosine")
every_miner = pytest.mark.parametrize("name", MINERS)


def sets(found: Any) -> Any:
    return tuples(*found) if isinstance(found, mining.Triplets) else both(found)


def compare(name: str, batch: tuple[Any, ...], **loops: Any) -> None:
    miner, arguments, reference = MINERS[name]
    found = miner(*batch, **arguments, **loops)
    at = Loops(*batch, **loops)
    if name == "hdc":
        # Equally far pairs may replace each other: the distances decide.
        for ours, theirs in zip(sets(found), reference(at)):
            values = [sorted(at.D[i][j] for i, j in pairs) for pairs in (ours, theirs)]
            assert values[0] == pytest.approx(values[1], abs=1e-7)
    else:
        assert sets(found) == reference(at)


@every_miner
def test_equals_the_loops(name: str, random_batch: Callable[..., Batch]) -> None:
    compare(name, random_batch(1, n=14, classes=4))


@every_miner
def test_equals_the_loops_against_references(name: str, random_batch: Callable[..., Batch]) -> None:
    rows, labels = random_batch(2, n=9, classes=4)
    refs, ref_labels = random_batch(3, n=17, classes=5)
    own = torch.tensor([-1, 16, 15, 14, -1, 3, 4, 5, 6])
    refs[own[1:4]], ref_labels[own[1:4]] = rows[1:4], labels[1:4]
    compare(name, (rows, labels, refs, ref_labels, own))
    compare(name, (rows, labels, refs, ref_labels))


@pytest.mark.parametrize("name", [name for name in MINERS if not any(n in name for n in NOT_OF_GIVEN_ROWS)])
def test_equals_the_loops_on_rows_as_given(name: str, random_batch: Callable[..., Batch]) -> None:
    compare(name, random_batch(4, n=12), normalize=False)


@every_miner
def test_awkward_batches(name: str, awkward_batch: Batch) -> None:
    """Nothing raises; where nothing is equally far, the loops' indices come, else at least valid ones."""
    miner, arguments, reference = MINERS[name]
    found = miner(*awkward_batch, **arguments)
    assert all(index.dtype == torch.int64 and index.ndim == 1 for index in found)
    rows, labels = awkward_batch
    at = Loops(rows, labels)
    if not any(word in name for word in ("batch_easy_hard", "n_hard", "hdc")):
        assert sets(found) == reference(at)
        return
    if isinstance(found, mining.Triplets):
        found = mining.PairIndices(found.anchor, found.positive, found.anchor, found.negative)
        assert len(set(found.anchor_positive.tolist())) == sum(
            bool(at.P[i]) and len(at.N[i]) >= 2 for i in range(at.n)
        )
    else:
        ours, theirs = both(found), reference(at)
        assert [len(pairs) for pairs in ours] == [len(pairs) for pairs in theirs]
    assert all(p in at.P[i] for i, p in zip(found.anchor_positive.tolist(), found.positive.tolist()))
    assert all(n in at.N[i] for i, n in zip(found.anchor_negative.tolist(), found.negative.tolist()))


@every_miner
def test_blocks_do_not_matter(
    name: str, random_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    miner, arguments, _ = MINERS[name]
    rows, labels = random_batch(5, n=13)
    batch = (rows, labels, *random_batch(6, n=21, classes=4))
    whole = sets(miner(*batch, **arguments))
    for numbers in (1, 50, 21 * 13):
        monkeypatch.setattr(blocks, "BLOCK", numbers)
        assert sets(miner(*batch, **arguments)) == whole


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 12),
    m=st.integers(0, 15),
    classes=st.integers(1, 6),
    name=st.sampled_from(sorted(MINERS)),
)
def test_random_shapes(seed: int, n: int, m: int, classes: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, refs = (torch.randn(k, 5, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    compare(name, (rows, labels, refs, ref_labels))
    compare(name, (rows, labels))


@pytest.mark.parametrize("form", ["distance", "squared_distance", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_under_two_labels_are_ties_however_they_round(form: str, dtype: torch.dtype) -> None:
    """The positive's copy is a negative of gap 0: hard, not semi-hard; and not further than it."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 33, generator=generator).to(dtype)
    refs = torch.cat([rows.roll(1, 0) * 3, rows.roll(1, 0)])  # a multiple rounds differently when normalised
    labels = torch.zeros(40, dtype=torch.int64)
    ref_labels = torch.cat([labels, labels + 1])
    copies = {(i, j, j + 40) for i in range(40) for j in range(40)}
    batch = (rows, labels, refs, ref_labels)
    hard = mining.triplet_margin(*batch, kind="hard", form=form)  # pyright: ignore[reportArgumentType]
    semihard = mining.triplet_margin(*batch, kind="semihard", margin=9, form=form)  # pyright: ignore[reportArgumentType]
    assert copies <= tuples(*hard)
    for kind, there in (("all", True), ("hard", True), ("easy", False)):
        at_zero = mining.triplet_margin(*batch, kind=kind, margin=0.0, form=form)  # pyright: ignore[reportArgumentType]
        assert len(copies & tuples(*at_zero)) == len(copies) * there
    assert not copies & tuples(*semihard)
    easy_positive = mining.batch_easy_hard(*batch)
    assert not (easy_positive.negative == easy_positive.positive + 40).any()


def test_n_hard_of_one_is_batch_hard(random_batch: Callable[..., Batch]) -> None:
    batch = random_batch(7, n=30)
    assert sets(mining.n_hard(*batch)) == sets(mining.batch_hard(*batch))


def test_a_share_is_that_of_the_loss() -> None:
    """0.28 · 100 is 28.000000000000004 in floating point."""
    rows, labels = (
        torch.randn(20, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(10, dtype=torch.int64),
    )
    kept = mining.hdc(rows[:10], labels, rows[10:], labels, share=0.28)
    assert len(kept.positive) == 28
    assert len(mining.hdc(rows[:10], labels, rows[10:], labels, share=0.5, among=kept).positive) == 14


def test_hdc_cascade_takes_from_what_the_level_below_kept(random_batch: Callable[..., Batch]) -> None:
    """Half of a half of the same rows is the hardest quarter; of other rows, hard pairs among the kept."""
    rows, labels = random_batch(8, n=24)
    refs, ref_labels = random_batch(9, n=32)
    batch = (rows, labels, refs, ref_labels)
    half = mining.hdc(*batch, share=0.5)
    quarter = mining.hdc(*batch, share=0.25)
    counts = [math.ceil(0.5 * len(half.positive)), math.ceil(0.5 * len(half.negative))]
    again = mining.hdc(*batch, share=0.5, among=half)
    assert [len(again.positive), len(again.negative)] == counts
    assert all(ours >= theirs for ours, theirs in zip(both(again), both(quarter)))
    other = mining.hdc(rows.flip(1), labels, refs.flip(0), ref_labels, share=0.1, among=half)
    assert all(ours <= theirs for ours, theirs in zip(both(other), both(half)))


def test_half_precision_is_mined_in_float32(random_batch: Callable[..., Batch]) -> None:
    rows, labels = random_batch(10, n=20)
    refs, ref_labels = random_batch(11, n=30)
    half, ref_half = rows.bfloat16(), refs.bfloat16()
    for miner, arguments, _ in MINERS.values():
        wide = miner(half.float(), labels, ref_half.float(), ref_labels, **arguments)
        assert sets(miner(half, labels, ref_half, ref_labels, **arguments)) == sets(wide)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = miner(half.float(), labels, ref_half, ref_labels, **arguments)
        assert sets(again) == sets(wide)


def test_a_loss_of_ones_own_learns_from_the_indices(random_batch: Callable[..., Batch]) -> None:
    rows, labels = random_batch(12, n=16)
    rows.requires_grad_()
    anchor, positive, negative = mining.triplet_margin(rows, labels, kind="semihard", margin=0.4)
    assert len(anchor)
    x = torch.nn.functional.normalize(rows)
    gap = (x[anchor] - x[negative]).norm(dim=1) - (x[anchor] - x[positive]).norm(dim=1)
    assert gap.gt(0).all()
    assert gap.le(0.4).all()
    (0.4 - gap).mean().backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: mining.triplet_margin(x, y, kind="semi-hard"), "Did you mean 'semihard'"),
        (lambda x, y: mining.triplet_margin(x, y, form="euclid"), "form"),
        (lambda x, y: mining.pair_margin(x, y, positive_margin=0, negative_margin=1, form="l2"), "form"),
        (lambda x, y: mining.batch_easy_hard(x, y, positive="hardest"), "positive"),
        (lambda x, y: mining.batch_easy_hard(x, y, positive="semihard"), "semi-hard"),
        (lambda x, y: mining.batch_easy_hard(x, y, positive="all"), "semi-hard"),
        (lambda x, y: mining.hdc(x, y, share=0), "share"),
        (lambda x, y: mining.hdc(x, y, share=1.5), "share"),
        (lambda x, y: mining.n_hard(x, y, positives=0), "positives"),
        (lambda x, y: mining.n_hard(x, y, negatives=(3, 2)), "negatives"),
        (lambda x, y: mining.angular(x, y, angle=90), "angle"),
        (lambda x, y: mining.multi_similarity(x, y[:3]), "labels"),
        (lambda x, y: mining.batch_hard(x, y, x), "ref_labels"),
    ],
)
def test_wrong_settings_are_named(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 x 20,000 pairs: no matrix of them all, neither as numbers (20 MB) nor as a mask (5 MB)."""
    monkeypatch.setattr(blocks, "BLOCK", 2**17)
    generator = torch.Generator().manual_seed(1)
    rows, refs = (torch.randn(k, 8, generator=generator) for k in (256, 20_000))
    labels, ref_labels = (torch.randint(4000, (k,), generator=generator) for k in (256, 20_000))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return out

    with Watch():
        for miner, arguments in (
            (mining.multi_similarity, {"epsilon": -1.5}),
            (mining.triplet_margin, {"kind": "semihard", "margin": 1e-4}),
            (mining.batch_easy_hard, {}),
            (mining.n_hard, {"positives": 3, "negatives": 3}),
            (mining.hdc, {"share": 0.001}),
            (mining.angular, {"angle": 80}),
        ):
            miner(rows, labels, refs, ref_labels, **arguments)
    assert largest <= 16 * blocks.BLOCK  # the two int64 indices of each pair of a block

"""Anchors compared with references: the object that every pair loss is written on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deepmetric.losses.streamed import choose, steps, sums
from deepmetric.losses.streamed.dense import MATRIX, MatrixSide, value_matrix
from deepmetric.losses.streamed.listed import PairList, pair_values
from deepmetric.losses.streamed.matching import Matches, match
from deepmetric.losses.streamed.metric import Kind, Metric
from deepmetric.losses.streamed.operator import Job, reduce
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.tiles import BIG, Group, HiddenClasses, HiddenPairs, tile_width

# More pairs of one label than this, and their reductions run over dense blocks, one class at a time.
LISTED = 2**18


class Comparison:
    """Every anchor against every reference, seen through per-anchor reductions.

    Args:
        anchors: [N, d] floating point. Half precision is computed in float32.
        labels: [N] integers.
        refs: [M, d]; the anchors themselves (the same tensor) for a batch with itself. References of lower
            precision, or not normalised, are converted tile by tile; they are copied only if they need a
            gradient.
        ref_labels: [M] integers.
        own: [N] int64, the position of anchor i's own copy among the references, -1 for none; None: no anchor
            has one. That pair is neither positive nor negative.
        kind: what a pair's value is: "dot" product, "squared" Euclidean distance or "distance".
        normalize: L2-normalise rows first ("dot" is then the cosine). A zero row stays zero.
        processes: where references are spread over processes; anchors, labels and ``own`` are then this
            process's part, and results are of the anchors of all processes.
        width: references per tile, chosen from the shapes if None.
        listed: up to how many pairs of one label are listed.

    Values of pairs whose distance is below the rounding of the matrix product are distance 0, with derivative
    0. Reductions have first-order gradients for anchors, references and parameters.
    """

    def __init__(
        self,
        anchors: Tensor,
        labels: Tensor,
        refs: Tensor,
        ref_labels: Tensor,
        own: Tensor | None,
        *,
        kind: Kind = "dot",
        normalize: bool = True,
        processes: Processes | None = None,
        width: int | None = None,
        listed: int = LISTED,
    ) -> None:
        dtype = torch.promote_types(torch.promote_types(anchors.dtype, refs.dtype), torch.float32)
        itself = refs is anchors
        with torch.autocast(device_type=anchors.device.type, enabled=False):
            anchors = anchors.to(dtype)
            if normalize:
                anchors = unit_rows(anchors)
            if itself:
                refs = anchors
            elif normalize and refs.requires_grad:
                refs = unit_rows(refs.to(dtype))
            self.normalize_refs = normalize and not itself and not refs.requires_grad
        if processes is not None:
            counts = processes.counts(anchors)
            anchors = processes.gather(anchors)
            labels = processes.gather(labels)
            before = sum(counts[: processes.rank])
            if own is not None:
                everyone = own.new_full((sum(counts),), -1)
                everyone[before : before + len(own)] = own
                own = everyone
        self.anchors, self.labels, self.refs, self.ref_labels, self.own = (
            anchors,
            labels,
            refs,
            ref_labels,
            own,
        )
        self.kind: Kind = kind
        self.normalize, self.processes = normalize, processes
        self.width, self.listed = width, listed
        # What is computed once must have a gradient later, though it be asked for first under no_grad.
        self._grad = torch.is_grad_enabled()

    def metric(self, scale: float = 1.0) -> Metric:
        return Metric(self.kind, self.normalize, scale)

    @cached_property
    def matches(self) -> Matches:
        if self.processes is None:
            return match(self.labels, self.ref_labels, self.listed)
        processes, device = self.processes, self.labels.device
        return match(
            self.labels,
            self.ref_labels,
            self.listed,
            lambda pairs: int(processes.max_(torch.tensor(pairs, device=device))),
        )

    @cached_property
    def _own_label(self) -> tuple[Tensor, Tensor]:
        """Whether anchor i's own copy is here, and whether it is and carries the anchor's label, [N] bool."""
        if self.own is None:
            no = torch.zeros(len(self.labels), dtype=torch.bool, device=self.labels.device)
            return no, no
        here = self.own >= 0
        if not len(self.ref_labels):
            return here, here
        return here, here & (self.ref_labels[self.own.clamp_min(0)] == self.labels)

    @cached_property
    def positive_count(self) -> Tensor:
        """How many positives each anchor has, [N] int64."""
        if self.small:
            return self._matrix[1].sum(1)
        return self._everywhere(self.matches.counts - self._own_label[1].long())

    @cached_property
    def negative_count(self) -> Tensor:
        """How many negatives each anchor has, [N] int64."""
        if self.small:
            return self._matrix[2].sum(1)
        here, same = self._own_label
        return self._everywhere(len(self.ref_labels) - self.matches.counts - (here & ~same).long())

    def _everywhere(self, count: Tensor) -> Tensor:
        return self.processes.sum_(count) if self.processes is not None else count

    @cached_property
    def _matrix(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, positives and negatives [N, M] of a small problem."""
        same = self.labels[:, None] == self.ref_labels
        other = torch.ones_like(same)
        if self.own is not None:
            other = self.own[:, None] != torch.arange(len(self.refs), device=same.device)
        refs = self.refs.to(self.anchors.dtype)
        with torch.set_grad_enabled(self._grad), torch.autocast(refs.device.type, enabled=False):
            if self.normalize_refs:
                refs = unit_rows(refs)
            values = value_matrix(self.anchors, refs, self.kind, self.normalize)
        return values, same & other, ~same & other

    @property
    def small(self) -> bool:
        """Whether one matrix is as good as tiles."""
        pairs = len(self.anchors) * len(self.refs)
        return self.width is None and self.processes is None and pairs <= MATRIX

    @cached_property
    def negatives(self) -> Side | MatrixSide:
        """Pairs of different labels."""
        if self.small:
            values, _, negative = self._matrix
            return MatrixSide(values, negative, lambda: self._negative_tiles)
        return self._negative_tiles

    @cached_property
    def _negative_tiles(self) -> Side:
        return self.negative_tiles()

    def negative_tiles(self, rows: Tensor | None = None) -> Side:
        """The negatives in tiles whose rows are the anchors ``rows`` [N], a permutation."""
        matches, n, m = self.matches, len(self.anchors), len(self.refs)
        # With a pass for every slot there is more to do in a tile than to fetch it.
        width = self.width or tile_width(n, self.anchors) * (1 if rows is None else 2)
        extra = self._own_of_another_label()
        row_of = _inverse(rows) if rows is not None else None

        def pairs(row: Tensor, rank: Tensor) -> HiddenPairs:
            return HiddenPairs(row if row_of is None else row_of[row], rank, 0, m, width)

        if matches.anchor is None or matches.ref is None:
            assert matches.anchor_class is not None
            assert matches.ref_class is not None
            dtype = self.anchors.dtype
            also = pairs(*_by_rank(*extra)) if extra is not None else None
            of_row = matches.anchor_class if rows is None else matches.anchor_class[rows]
            hidden = HiddenClasses(of_row.to(dtype), matches.ref_class.to(dtype), also)
        else:
            row, rank = matches.anchor, matches.ref
            if extra is not None:
                row, rank = _by_rank(torch.cat([row, extra[0]]), torch.cat([rank, extra[1]]))
            hidden = pairs(row, rank)
        return Side(self, [Group(slice(0, n), 0, m, width, hidden, None)], rows)

    def _own_of_another_label(self) -> tuple[Tensor, Tensor] | None:
        here, same = self._own_label
        if self.own is None:
            return None
        row = (here & ~same).nonzero()[:, 0]
        return (row, self.own[row]) if len(row) else None

    @cached_property
    def positives(self) -> PairList | Side | MatrixSide:
        """Pairs of one label without own copies: a list, or blocks of classes where the list would be long.

        Both have the same reductions; only the list knows its single pairs.
        """
        if self.small:
            values, positive, _ = self._matrix
            return MatrixSide(values, positive, self._positive_blocks)
        return self.positive_list if self.matches.anchor is not None else self._positive_blocks()

    @cached_property
    def positive_list(self) -> PairList:
        """The positives as a list of pairs with their values, however many they are."""
        matches = self.matches
        if matches.anchor is None:
            with_list = match(self.labels, self.ref_labels, 2**62)
            anchor, ref = with_list.anchor, with_list.ref
        else:
            anchor, ref = matches.anchor, matches.ref
        assert anchor is not None
        assert ref is not None
        if self.own is not None:
            other = (ref != self.own[anchor]).nonzero()[:, 0]
            anchor, ref = anchor[other], ref[other]
        with torch.set_grad_enabled(self._grad):
            values = self.values(anchor, ref)
        return PairList(anchor, ref, values, len(self.anchors), self.processes)

    def _positive_blocks(self) -> Side:
        matches, n = self.matches, len(self.anchors)
        assert matches.anchor_class is not None
        assert matches.ref_class is not None
        classes, rows = matches.anchor_class.sort(stable=True)
        ranked, order = matches.ref_class.sort(stable=True)
        number = int(classes[-1]) + 1 if n else 0
        edges = torch.arange(number + 1, device=classes.device)
        row_edges = torch.searchsorted(classes, edges).tolist()
        rank_edges = torch.searchsorted(ranked, edges).tolist()
        rank_of = torch.empty_like(order)
        rank_of[order] = torch.arange(len(order), device=order.device)
        groups = []
        for c in range(number):
            r0, r1, lo, hi = row_edges[c], row_edges[c + 1], rank_edges[c], rank_edges[c + 1]
            # Gathered rows must stay in the cache until they are multiplied.
            width = self.width or min(tile_width(r1 - r0, self.anchors), 2048)
            row = rank = rows.new_zeros(0)
            if self.own is not None and hi > lo:
                own = self.own[rows[r0:r1]]
                place = rank_of[own.clamp_min(0)]
                mine = ((own >= 0) & (place >= lo) & (place < hi)).nonzero()[:, 0]
                row, rank = _by_rank(mine, place[mine])
            hidden = HiddenPairs(row, rank, lo, hi, width)
            groups.append(Group(slice(r0, r1), lo, hi, width, hidden, order))
        return Side(self, groups, rows)

    def negative_sum(self) -> Tensor:
        """Σ of the negatives' values [N] with gradient, for dot products: the anchor times a sum of rows."""
        if self.kind != "dot":
            raise ValueError("only dot products are linear in the references")
        total = self.anchors.new_zeros(self.anchors.shape[1])
        for rows in self.refs.split(8192):
            rows = rows.to(total.dtype)
            total = total + (unit_rows(rows) if self.normalize_refs else rows).sum(0)
        every = self.anchors @ total
        if self.processes is not None:
            every = self.processes.sum(every)
        own = self.chosen(self.own)[0] if self.own is not None else 0
        return every - self.positives.sum(lambda v: v) - own

    def values(self, anchor: Tensor, ref: Tensor) -> Tensor:
        """Values of listed pairs [P], with gradient."""
        return pair_values(self.anchors, self.refs, anchor, ref, self.metric(), self.normalize_refs)

    def chosen(self, ref: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one chosen reference for each anchor, ``ref`` [N, ...] with -1 for none: (values, 0 where
        there is none; whether there is one), each of ref's shape."""
        anchor = torch.arange(len(ref), device=ref.device).view(-1, *[1] * (ref.ndim - 1)).expand_as(ref)
        found = ref >= 0
        out = self.anchors.new_zeros(ref.shape).masked_scatter(found, self.values(anchor[found], ref[found]))
        if self.processes is None:
            return out, found
        return self.processes.sum(out), self.processes.max_(found.to(torch.uint8)).bool()


class Side:
    """The negatives, or the positives in blocks: reductions that stream over tiles."""

    def __init__(self, pairs: Comparison, groups: list[Group], rows: Tensor | None = None) -> None:
        self.pairs, self.groups = pairs, groups
        self.rows = rows  # [N] the anchor of each row of the groups; None: as they come

    def logsumexp(
        self,
        scale: float = 1.0,
        *,
        beyond: Tensor | None = None,
        fn: sums.Elementwise | None = None,
        params: tuple[Tensor, ...] = (),
        slope: sums.Elementwise | None = None,
    ) -> Tensor:
        """log Σ exp(scale * v), or log Σ exp(fn(v, *params)), [N]; -inf over nothing, with zero gradient.

        ``beyond`` [N] (without gradient): only pairs with scale * v > scale * beyond. ``slope``: the derivative
        of ``fn`` as a function of v, where it is not to be that of ``fn``, or is cheaper (then without params).
        """
        return self._logsumexp(scale, beyond, fn, params, hardest=False, slope=slope)[0]

    def logsumexp_and_hardest(self, scale: float, *, beyond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`logsumexp`, and in the same pass the value of the largest scale * v of all pairs (not only
        those beyond), without gradient; infinite of that sign over nothing."""
        value, hardest = self._logsumexp(scale, beyond, None, (), hardest=True)
        return value, _finite_or_inf(hardest) / scale

    def _logsumexp(
        self,
        scale: float,
        beyond: Tensor | None,
        fn: sums.Elementwise | None,
        params: tuple[Tensor, ...],
        hardest: bool,
        slope: sums.Elementwise | None = None,
    ) -> list[Tensor]:
        metric = self.pairs.metric(1.0 if fn is not None else scale)
        # exp of twice this, times as many pairs as there may be, stays in range.
        bounded = metric.bound() <= (60 if self.pairs.anchors.dtype == torch.float32 else 500)
        mined = beyond is not None
        if beyond is not None:
            params = ((beyond.detach() * scale).clamp(-0.1 * BIG, 0.1 * BIG),)
        return self._reduce(
            sums.LogSumExp(bounded=bounded, mined=mined, hardest=hardest, fn=fn, slope=slope), metric, params
        )

    def sum(self, fn: sums.Elementwise, *params: Tensor, slope: sums.Elementwise | None = None) -> Tensor:
        """Σ fn(v, *params) [N] of any elementwise function; params [N].

        ``slope``: the derivative of ``fn`` by v as a function of the same arguments, where it is not to be that
        of ``fn``, or is cheaper; params are then constants.
        """
        return self._reduce(sums.ElementwiseSum(fn, slope), self.pairs.metric(), params)[0]

    def weighted_sum(self, weight: sums.Elementwise) -> Tensor:
        """Σ weight(v) v [N] with the weights as constants: a loss given by the weights of its pairs."""
        return self._reduce(sums.WeightedSum(weight), self.pairs.metric(), [])[0]

    def hinge_sum(
        self, threshold: Tensor | float, *, above: bool, squared: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Σ [v - t]₊ (``above``) or Σ [t - v]₊, or of their squares, [N], and how many are positive."""
        reduction = sums.HingeSum(above=above, squared=squared, count=True)
        value, count = self._reduce(reduction, self.pairs.metric(), [self._param(threshold)])
        return value, count

    def softplus_sum(self, scale: float, shift: Tensor | float) -> Tensor:
        """Σ log(1 + exp(scale (v - shift))) [N]."""
        return self._reduce(sums.SoftplusSum(), self.pairs.metric(scale), [scale * self._param(shift)])[0]

    def hinge_over_positives(
        self,
        positives: PairList,
        threshold: Tensor,
        *,
        scale: float = 1.0,
        start: Tensor | None = None,
        stop: Tensor | None = None,
        soft: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Σ [scale * v - t]₊, or of its softplus, over all pairs of a positive and a negative of the anchor.

        ``threshold``, ``start``, ``stop``: [P], beside the pairs of ``positives``, in units of scale * v; only
        negatives with start < scale * v < stop count (without them: all with a positive hinge, or all). Only
        ``threshold`` has a gradient. Returns the sum [N], how many counted [N], and how many for each positive
        [N, K].
        """
        t = positives.padded(threshold, BIG)
        begin = t.detach() if start is None else positives.padded(start.detach(), BIG)
        end = torch.zeros_like(t).detach() if stop is None else positives.padded(stop.detach(), -BIG)
        metric = self.pairs.metric(scale)
        if soft:
            reduction: Any = steps.SoftSteps(
                intervals=start is not None or stop is not None, bounded=metric.bound() <= 4
            )
        else:
            reduction = steps.HingeSteps(stops=stop is not None)
        value, count, each = self._by_slots(t.detach() < 0.5 * BIG)._reduce(
            reduction, metric, [t, begin, end]
        )
        return value, count, each

    def _by_slots(self, used: Tensor) -> Side:
        """The same negatives, anchors with many positives first: then slot k of [N, K] is used by the first
        rows alone, and a tile's pass for it is over these."""
        if self.rows is not None:
            return self
        return self.pairs.negative_tiles(used.sum(1).argsort(descending=True, stable=True))

    def max(self) -> Tensor:
        """The largest value of each anchor [N] without gradient, -inf over nothing."""
        return _finite_or_inf(self._reduce(choose.Extreme(), self.pairs.metric(), [])[0])

    def min(self) -> Tensor:
        """The smallest value of each anchor [N] without gradient, inf over nothing."""
        return -_finite_or_inf(self._reduce(choose.Extreme(), self.pairs.metric(-1.0), [])[0])

    def argmax(self, scale: float = 1.0) -> Tensor:
        """The reference of the largest scale * v of each anchor [N] int64, -1 for none; over several processes
        it is with one of them, -1 with the others. So with all that choose references."""
        return self._refs(self._reduce(choose.Largest(), self.pairs.metric(scale), [])[1])

    def argmax_below(self, bounds: Tensor, scale: float = 1.0, *, or_smallest: bool = False) -> Tensor:
        """For each bound [N, K] the reference of the largest scale * v below it, [N, K] int64, -1 for none.

        ``or_smallest``: where none is below, that of the anchor's smallest scale * v (a bound of -BIG, that of
        a slot without a positive, stays without).
        """
        side = self._by_slots(bounds > -BIG)
        value, rank = side._reduce(choose.Largest(below=True), self.pairs.metric(scale), [bounds])
        ref = self._refs(rank)
        if or_smallest:
            missing = (value <= -BIG) & (bounds > -BIG)
            if missing.any():
                ref = torch.where(missing, self.argmax(-scale)[:, None], ref)
        return ref

    def topk(self, k: int, scale: float = 1.0) -> Tensor:
        """The references of the k largest scale * v of each anchor [N, k], -1 where there are fewer."""
        return self._refs(self._reduce(choose.TopK(k), self.pairs.metric(scale), [])[1])

    def sample(
        self, log_weight: sums.Elementwise, draws: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """References [N, draws] drawn with replacement, weighted by exp(log_weight(v)); -1 without weights."""
        reduction = choose.Sample(log_weight, draws, generator)
        return self._refs(self._reduce(reduction, self.pairs.metric(), [])[0])

    def _refs(self, ranks: Tensor) -> Tensor:
        order = self.groups[0].order if self.groups else None
        return ranks if order is None else torch.where(ranks >= 0, order[ranks.clamp_min(0)], -1)

    def _param(self, t: Tensor | float) -> Tensor:
        if isinstance(t, Tensor) and t.ndim:
            return t
        return torch.as_tensor(t).to(self.pairs.anchors).expand(len(self.pairs.anchors))

    def _reduce(self, reduction: Any, metric: Metric, params: Sequence[Tensor]) -> list[Tensor]:
        pairs, anchors = self.pairs, self.pairs.anchors
        params = [p.to(anchors.dtype) for p in params]
        if self.rows is not None:
            anchors, params = anchors[self.rows], [p[self.rows] for p in params]
        job = Job(reduction, metric, self.groups, pairs.normalize_refs, pairs.processes)
        out = reduce(job, anchors, pairs.refs, params)
        if self.rows is not None:
            back = _inverse(self.rows)
            out = [o[back] for o in out]
        return out


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [N, d] divided by their L2 norm; a zero row stays zero, with a finite gradient."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1)


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(inverse), device=inverse.device)
    return inverse


def _by_rank(row: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    order = rank.argsort(stable=True)
    return row[order], rank[order]


def _finite_or_inf(value: Tensor) -> Tensor:
    """-BIG, what an empty maximum leaves, as -inf."""
    return torch.where(value > -0.05 * BIG, value, -math.inf)

"""Anchors compared with references: the object that every pair loss is written on."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from deepmetric.losses.streamed.dense import MATRIX, MatrixSide, from_cosines, value_matrix
from deepmetric.losses.streamed.gradients import without_autocast
from deepmetric.losses.streamed.listed import PairList, pair_values
from deepmetric.losses.streamed.matching import Matches, match
from deepmetric.losses.streamed.metric import Kind, Metric
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.rows import are_unit, cosines, unit_rows
from deepmetric.losses.streamed.side import Side, inverse
from deepmetric.losses.streamed.tiles import Group, HiddenClasses, HiddenPairs, tile_width

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
            has one. That pair is neither positive nor negative. 0, 1, ..., N - 1 where references and labels are the
            anchors' own tensors.
        processes: where references are spread over processes: anchors and labels are those of all processes,
            everywhere alike, references and ``own`` are of this process. Results are the same everywhere.
        kind: what a pair's value is: "dot" product, "squared" Euclidean distance or "distance".
        normalize: L2-normalise rows first ("dot" is then the cosine). A zero row stays zero.
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
        processes: Processes | None = None,
        *,
        kind: Kind = "dot",
        normalize: bool = True,
        width: int | None = None,
        listed: int = LISTED,
    ) -> None:
        dtype = torch.promote_types(torch.promote_types(anchors.dtype, refs.dtype), torch.float32)
        self._itself = refs is anchors
        self._anchors = anchors.to(dtype)  # before they are normalised
        if not self._itself and normalize and refs.requires_grad:
            with without_autocast(anchors.device):
                refs = unit_rows(refs.to(dtype))
        self._refs, self.labels, self.ref_labels, self.own = refs, labels, ref_labels, own
        self.kind: Kind = kind
        self.normalize, self.processes = normalize, processes
        self.width, self.listed = width, listed
        self.normalize_refs = normalize and not self._itself and not refs.requires_grad
        if self.normalize_refs and not self.small and are_unit(refs, dtype):
            self.normalize_refs = False
        # What is computed once must have a gradient later, though it be asked for first under no_grad.
        self._grad = torch.is_grad_enabled()

    @cached_property
    def anchors(self) -> Tensor:
        """[N, d] as they are compared."""
        with torch.set_grad_enabled(self._grad), without_autocast(self._anchors.device):
            return unit_rows(self._anchors) if self.normalize else self._anchors

    @property
    def refs(self) -> Tensor:
        """[M, d]; to be normalised still if ``normalize_refs``."""
        return self.anchors if self._itself else self._refs

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
            return self._masks[0].sum(1)
        return self._everywhere(self.matches.counts - self._own_label[1].long())

    @cached_property
    def negative_count(self) -> Tensor:
        """How many negatives each anchor has, [N] int64."""
        if self.small:
            return self._masks[1].sum(1)
        here, same = self._own_label
        return self._everywhere(len(self.ref_labels) - self.matches.counts - (here & ~same).long())

    def _everywhere(self, count: Tensor) -> Tensor:
        return self.processes.sum_(count) if self.processes is not None else count

    @cached_property
    def _masks(self) -> tuple[Tensor, Tensor]:
        """Positives and negatives, bool [N, M]."""
        labels, own = self.labels, self.own
        positive = labels[:, None] == self.ref_labels
        negative = ~positive
        if own is None:
            return positive, negative
        if self._itself and self.ref_labels is labels:
            return positive.fill_diagonal_(False), negative
        other = own[:, None] != torch.arange(len(self.ref_labels), device=own.device)
        return positive & other, negative & other

    @cached_property
    def _values(self) -> Tensor:
        with torch.set_grad_enabled(self._grad), without_autocast(self._anchors.device):
            if self._itself and self.normalize:
                return from_cosines(cosines(self._anchors), self.kind)
            refs = self.refs.to(self.anchors.dtype)
            refs = unit_rows(refs) if self.normalize_refs else refs
            return value_matrix(self.anchors, refs, self.kind, self.normalize)

    @property
    def matrix(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, positives and negatives [N, M]: for a small problem, and for what has no streamed form. Over
        several processes it would be that of the references here: gather them first."""
        return self._values, *self._masks

    @property
    def small(self) -> bool:
        """Whether one matrix is as good as tiles."""
        pairs = len(self.labels) * len(self.ref_labels)
        return self.width is None and self.processes is None and pairs <= MATRIX

    # Sides are made anew: kept here they would be circles, which hold the graph until the garbage collector comes.
    @property
    def negatives(self) -> Side | MatrixSide:
        """Pairs of different labels."""
        if self.small:
            return MatrixSide(self._values, self._masks[1], self.negative_tiles)
        return self.negative_tiles()

    def negative_tiles(self, rows: Tensor | None = None) -> Side:
        """The negatives in tiles whose rows are the anchors ``rows`` [N], a permutation."""
        return Side(self, self._negative_groups if rows is None else self._groups_of_negatives(rows), rows)

    @cached_property
    def _negative_groups(self) -> list[Group]:
        return self._groups_of_negatives(None)

    def _groups_of_negatives(self, rows: Tensor | None) -> list[Group]:
        matches, n, m = self.matches, len(self.anchors), len(self.refs)
        # With a pass for every slot there is more to do in a tile than to fetch it.
        width = self.width or tile_width(n, self.anchors) * (1 if rows is None else 2)
        extra = self._own_of_another_label()
        row_of = inverse(rows) if rows is not None else None

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
        return [Group(slice(0, n), 0, m, width, hidden, None)]

    def _own_of_another_label(self) -> tuple[Tensor, Tensor] | None:
        here, same = self._own_label
        if self.own is None:
            return None
        row = (here & ~same).nonzero()[:, 0]
        return (row, self.own[row]) if len(row) else None

    @property
    def positives(self) -> PairList | Side | MatrixSide:
        """Pairs of one label without own copies: a list, or blocks of classes where the list would be long.

        Both have the same sums, log-sum-exps and extremes; only the list knows its single pairs.
        """
        if self.small:
            return MatrixSide(self._values, self._masks[0], lambda: Side(self, *self._positive_blocks))
        return self.positive_list if self.matches.anchor is not None else Side(self, *self._positive_blocks)

    @cached_property
    def positive_list(self) -> PairList:
        """The positives as a list of pairs with their values, however many they are."""
        if self.small:
            # Valued like the negatives: what ties, ties exactly.
            anchor, ref = self._masks[0].nonzero().unbind(1)
            with torch.set_grad_enabled(self._grad):
                return PairList(anchor, ref, self.values(anchor, ref), len(self.labels))
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

    @cached_property
    def _positive_blocks(self) -> tuple[list[Group], Tensor]:
        """A group a class, and the anchors of its rows."""
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
        return groups, rows

    def negative_sum(self) -> Tensor:
        """Σ of the negatives' values [N] with gradient, for dot products: the anchor times a sum of rows."""
        if self.kind != "dot":
            raise ValueError("only dot products are linear in the references")
        total = self.anchors.new_zeros(self.anchors.shape[1])
        for rows in self.refs.split(8192):
            rows = rows.to(total.dtype)
            total = total + (unit_rows(rows) if self.normalize_refs else rows).sum(0)
        # No product of matrices, whose gradient autocast would take to half precision.
        every = (self.anchors * total).sum(1)
        if self.processes is not None:
            every = self.processes.sum(every)
        own = self.chosen(self.own)[0] if self.own is not None else 0
        return every - self.positives.sum(lambda v: v) - own

    def values(self, anchor: Tensor, ref: Tensor) -> Tensor:
        """Values of listed pairs [P], with gradient."""
        if self.small:
            values = self._values
            return values.reshape(-1).index_select(0, anchor * values.shape[1] + ref)
        return pair_values(self.anchors, self.refs, anchor, ref, self.metric(), self.normalize_refs)

    def chosen(self, ref: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one chosen reference for each anchor, ``ref`` [N, ...] with -1 for none: (values, 0 where
        there is none; whether there is one), each of ref's shape."""
        found = ref >= 0
        if self.small and len(self.ref_labels):
            flat = ref.clamp_min(0).view(len(ref), ref.shape[1:].numel())
            return torch.where(found, self._values.gather(1, flat).view_as(ref), 0), found
        anchor = torch.arange(len(ref), device=ref.device).view(-1, *[1] * (ref.ndim - 1)).expand_as(ref)
        out = self.anchors.new_zeros(ref.shape).masked_scatter(found, self.values(anchor[found], ref[found]))
        if self.processes is None:
            return out, found
        return self.processes.sum(out), self.processes.max_(found.to(torch.uint8)).bool()


def _by_rank(row: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    order = rank.argsort(stable=True)
    return row[order], rank[order]

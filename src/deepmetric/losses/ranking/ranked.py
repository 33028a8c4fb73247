"""Each query's similarities to all references, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed.dense import value_matrix
from deepmetric.losses.streamed.rows import unit_rows

# Comparisons held at once: 8 MiB in float32 for each of the handful of tensors that a loss makes of them.
AT_ONCE = 2**21


class Block(NamedTuple):
    """Some queries against all references. An own copy is no negative, and a positive only where it is counted."""

    similarity: Tensor  # [b, M], with gradient
    positive: Tensor  # [b, M] bool
    negative: Tensor  # [b, M] bool
    rows: slice  # which anchors the queries are
    part: tuple[int, int] = (0, 1)  # of the pairs of a query and a positive those of this part, of so many

    def gaps(self) -> tuple[Tensor, Tensor]:
        """Of every pair of a query and a positive p: the query [E], and s_j - s_p for all references j [E, M]."""
        query, place = self.positive.nonzero().unbind(1)
        part, parts = self.part
        pairs = slice(part * len(query) // parts, (part + 1) * len(query) // parts)
        query, place = query[pairs], place[pairs]
        return query, self.similarity[query] - self.similarity[query, place][:, None]

    def over_positives(self, query: Tensor, values: Tensor) -> Tensor:
        """Sums [E] of values [E, M] over the query's positives, p itself too."""
        return values.masked_fill(~self.positive[query], 0).sum(1)

    def over_negatives(self, query: Tensor, values: Tensor) -> Tensor:
        """Sums [E] of values [E, M] over the query's negatives."""
        return values.masked_fill(~self.negative[query], 0).sum(1)

    def per_query(self, query: Tensor, values: Tensor) -> Tensor:
        """Sums [b, ...] of values [E, ...] over the pairs of each query."""
        return values.new_zeros(len(self.similarity), *values.shape[1:]).index_add(0, query, values)


class Ranked:
    """References ranked for each query; nothing of a size beyond a block is kept, it is computed again backward.

    Args:
        batch: of all processes' references together (``Batch.gathered``).
        count_query: a query's own copy among the references is one of its positives.
        kind: similarity is the "dot" product or minus the Euclidean "distance".
        normalize: L2-normalise rows first.
    """

    def __init__(
        self, batch: Batch, *, count_query: bool = False, kind: str = "dot", normalize: bool = True
    ) -> None:
        batch = batch.gathered()
        prepare = unit_rows if normalize else Tensor.contiguous
        self.anchors = prepare(batch.anchors)
        inside = batch.refs is batch.anchors
        self.refs = self.anchors if inside else prepare(batch.refs.to(self.anchors.dtype))
        self.labels, self.ref_labels, self.own = batch.labels, batch.ref_labels, batch.own
        self.count_query, self.kind, self.normalize = count_query, kind, normalize
        self.others = _matches(self.labels, self.ref_labels)  # [N] positives other than the own copy
        self.others -= self.has_own
        self.positives = self.others + self.has_own if count_query else self.others  # [N]

    @property
    def has_own(self) -> Tensor:
        """[N] 1 where the query's own copy, under its label, is among the references."""
        if self.own is None or not len(self.ref_labels):
            return torch.zeros_like(self.labels, dtype=torch.int64)
        own = self.own.clamp_min(0)
        return ((self.own >= 0) & (self.ref_labels[own] == self.labels)).long()

    @property
    def tolerance(self) -> float:
        """Similarities of unit rows that are nearer than this may differ by rounding alone."""
        return 16 * torch.finfo(self.anchors.dtype).eps

    def per_query(self, fn: Callable[[Block], Tensor], *, compares: bool = True) -> Tensor:
        """``fn`` of each block [b, ...], joined [N, ...].

        Args:
            fn: from a block; its operations are repeated in the backward pass where there are several blocks.
            compares: it makes tensors over pairs of a positive and a reference, else over references. Its values
                must be sums over the pairs of ``Block.gaps``: of a query with many positives they come in parts.
        """
        m = max(len(self.refs), 1)
        cost = self.positives.clamp_min(1) * m if compares else torch.full_like(self.positives, m)
        place = (cost.cumsum(0) - cost) // AT_ONCE
        _, block, sizes = place.unique_consecutive(return_inverse=True, return_counts=True)
        costs = torch.zeros_like(sizes).index_add(0, block, cost)
        blocks = torch.stack([sizes, costs]).t().tolist() or [[0, 0]]
        values, start = [], 0
        for size, total in blocks:
            rows = slice(start, start + size)
            start += size
            parts = max(total // AT_ONCE, 1) if compares else 1
            again = len(blocks) > 1 or parts > 1
            value = self._of_block(fn, rows, (0, parts), again)
            for part in range(1, parts):
                value = value + self._of_block(fn, rows, (part, parts), again)
            values.append(value)
        return torch.cat(values)

    def mean(self, values: Tensor, answerable: Tensor) -> Tensor:
        """Mean of values [N] over queries that have a positive to find; 0 if there is none."""
        return torch.where(answerable, values, 0).sum() / answerable.sum().clamp_min(1)

    def _of_block(
        self, fn: Callable[[Block], Tensor], rows: slice, part: tuple[int, int], again: bool
    ) -> Tensor:
        """``fn`` of one block or part of it, ``again`` in the backward pass."""

        def of(anchors: Tensor, refs: Tensor) -> Tensor:
            return fn(self._block(anchors, refs, rows)._replace(part=part))

        if not again:
            return of(self.anchors, self.refs)
        # checkpoint's type is unknown to the checker
        value: Tensor = checkpoint(  # type: ignore[assignment]
            of, self.anchors, self.refs, use_reentrant=False, preserve_rng_state=False
        )
        return value

    def _block(self, anchors: Tensor, refs: Tensor, rows: slice) -> Block:
        if self.kind == "dot":
            similarity = anchors[rows] @ refs.t()
        else:
            similarity = -value_matrix(anchors[rows], refs, "distance", self.normalize)
        positive = self.labels[rows, None] == self.ref_labels[None, :]
        negative = ~positive
        if self.own is not None:
            own = self.own[rows]
            query = (own >= 0).nonzero()[:, 0]
            negative[query, own[query]] = False
            if not self.count_query:
                positive[query, own[query]] = False
        return Block(similarity, positive, negative, rows)


def _matches(labels: Tensor, ref_labels: Tensor) -> Tensor:
    """How many references carry each label [N] int64."""
    ordered = ref_labels.sort().values
    return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)

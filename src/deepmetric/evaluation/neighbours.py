"""Exact ranking of a gallery for every query, block by block: never a query x gallery matrix.

The rank of a query's i-th most similar positive is i + the number of negatives that are as similar or more.
So a block of queries needs its similarities once, the best few of them in order, and a count where those few
are not enough. Where a set is its own gallery, half the products do: :mod:`deepmetric.evaluation.one_set`.

Tie policy, *negatives first*: of equally similar gallery items the negatives come first. It does not depend
on the order of the gallery, and a model that maps everything to one point scores as badly as it deserves.
Similarities that differ by rounding alone (a few units in the last place) count as equal, because two exact
copies of an item may differ by that much when a matrix product treats them at different places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor

from deepmetric.evaluation.one_set import MOST, rank_within
from deepmetric.evaluation.ranks import BEYOND, BLOCK_ROWS, MANY_ROWS, Ranks, count_at_least, top_values
from deepmetric.evaluation.similarity import Reranking, Similarity, Space, prepare

BLOCK_BYTES = 128 * 2**20  # smaller blocks make the matrix product slower, by a third at a quarter of this
NEAREST = 16  # at least as many are looked at in order: most first positives are among them and need no count
SORT_SHARE = 32  # with more positives than this part of the gallery, sorting it is faster than selecting


def rank_positives(
    query: Tensor,  # [N, d] floating, finite
    query_classes: Tensor,  # [N] int64, 0 .. C-1
    gallery: Tensor | None,  # [M, d], or None: the queries themselves
    gallery_classes: Tensor,  # [M] int64, the same numbering
    # [N] int64: each query's own row in the gallery, -1 = it is not there; without a gallery known
    self_index: Tensor | None,
    *,
    similarity: Similarity | Reranking = "cosine",
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Ranks]:
    """Rank the positives of every query; yields :class:`Ranks`, a block of queries at a time, in any order.

    Ranks are exact up to the query's number of positives; the rank of its best positive always is. Memory:
    ``block_bytes`` of similarities (at least 16 rows of the gallery's length) and work space of the same
    order; where a set is its own gallery, two numbers more for each item and each positive of the largest class.
    """
    members = _Members(query_classes, gallery_classes)
    relevant = members.counts[query_classes]
    if gallery is None:
        self_index = torch.arange(len(query), device=query.device)
    if self_index is not None:
        own = gallery_classes[self_index.clamp_min(0)]
        relevant = relevant - ((self_index >= 0) & (own == query_classes)).long()
    few = 0 < int(relevant.max()) <= MOST
    if gallery is None and few and _symmetric(similarity, query.device):
        yield from rank_within(query, query_classes, relevant, similarity, block_bytes)
        return
    space = prepare(query, gallery, similarity, self_index)
    size = len(gallery_classes)
    fitting = block_bytes // (size * space.gallery.element_size())
    step = MANY_ROWS if fitting >= MANY_ROWS else BLOCK_ROWS
    block = min(len(query), max(1, fitting // step) * step)
    buffer = space.gallery.new_empty(block * size)  # fresh memory for each block costs a fifth of the product
    # Queries with like numbers of positives go together: one large class must not deepen every search.
    for rows in torch.argsort(relevant, stable=True).split(block):
        s = space.similarities(rows, buffer)
        if self_index is not None:
            there = (self_index[rows] >= 0).nonzero().squeeze(1)
            s[self_index[rows[there]], there] = -torch.inf
        yield _rank_block(s, rows, query_classes[rows], gallery_classes, members, relevant[rows], space)


def _symmetric(similarity: Similarity | Reranking, device: torch.device) -> TypeGuard[Similarity]:
    """Whether half the products do: not on a GPU, which would have to wait for each block's news."""
    return similarity in ("cosine", "dot") and device.type == "cpu"


def _rank_block(
    s: Tensor,  # [M, B]
    rows: Tensor,
    classes: Tensor,
    gallery_classes: Tensor,
    members: _Members,
    relevant: Tensor,
    space: Space,
) -> Ranks:
    most = int(relevant.max())
    if most and most * SORT_SHARE > len(s):
        rank = _all_ranks(s, members.similarities(s, classes), rows, space)
        ordinal = torch.arange(1, rank.shape[1] + 1, device=s.device).expand_as(rank)
        return Ranks(rows, relevant, rank[:, 0], rank, ordinal)

    # One more than needed shows whether the last one is tied with what was left out.
    depth = max(most, NEAREST)
    value, index = top_values(s, min(depth + 1, len(s)))
    positive = (gallery_classes[index] == classes[:, None]) & (value > -torch.inf)
    ordinal = positive.long().cumsum(dim=1)

    # Seen from a positive: how many of the list are as similar, and how many of those are negatives.
    as_similar = torch.searchsorted(-value, -space.tie_line(value, rows), right=True)
    negatives = as_similar - ordinal.gather(1, (as_similar - 1).clamp_min(0))
    rank = (ordinal + negatives).masked_fill(~positive, BEYOND)

    # When the whole list is as similar, items outside it may be too: that rank is only a lower bound.
    if value.shape[1] < len(s):
        open_ended = positive & (as_similar == value.shape[1])
        tied = (open_ended & (rank <= relevant[:, None])).any(dim=1).nonzero().squeeze(1)
        rank[open_ended] = BEYOND
        for some in tied.split(BLOCK_ROWS) if len(tied) else ():
            exact = _all_ranks(s[:, some], members.similarities(s, classes[some], some), rows[some], space)
            rank[some] = BEYOND
            rank[some, : exact.shape[1]] = exact
            ordinal[some] = torch.arange(1, rank.shape[1] + 1, device=s.device)

    first = rank.amin(dim=1)
    deep = ((first == BEYOND) & (relevant > 0)).nonzero().squeeze(1)
    if len(deep):
        best = members.similarities(s, classes[deep], deep)
        first = first.index_copy(0, deep, _first_rank(s, best, deep, rows[deep], space))
    return Ranks(rows, relevant, first, rank, ordinal)


def _first_rank(s: Tensor, positives: Tensor, columns: Tensor, rows: Tensor, space: Space) -> Tensor:
    """Rank of the best positive by counting, for the queries in ``columns`` of ``s``."""
    line = space.tie_line(positives[:, :1], rows)
    positives_above = (positives >= line).sum(dim=1)
    # All columns: to copy some of them out takes longer.
    lines = line.new_full((s.shape[1],), torch.inf).index_copy(0, columns, line[:, 0])
    return 1 + count_at_least(s, lines)[columns] - positives_above


def _all_ranks(s: Tensor, positives: Tensor, rows: Tensor, space: Space) -> Tensor:
    """Ranks of all positives ``[B, R]`` by sorting all similarities; ``BEYOND`` where a query has fewer than R."""
    line = space.tie_line(positives, rows)
    above = len(s) - torch.searchsorted(_sort_(s.T.clone(memory_format=torch.contiguous_format)), line)
    ordinal = torch.arange(1, positives.shape[1] + 1, device=s.device)
    positives_above = ordinal
    following = positives[:, 1:]
    if ((following >= line[:, :-1]) & (following > -torch.inf)).any():  # positives that tie with each other
        positives_above = torch.searchsorted(-positives, -line, right=True)
    return (ordinal + above - positives_above).masked_fill(positives == -torch.inf, BEYOND)


def _sort_(s: Tensor) -> Tensor:
    """Rows in rising order, in place. NumPy does it on the CPU several times faster than torch."""
    if s.device.type != "cpu":
        return s.copy_(s.sort(dim=1).values)
    s.numpy().sort(axis=1)
    return s


class _Members:
    """The gallery's rows of each class."""

    def __init__(self, query_classes: Tensor, gallery_classes: Tensor) -> None:
        number = int(torch.maximum(query_classes.max(), gallery_classes.max())) + 1
        self.counts = torch.bincount(gallery_classes, minlength=number)
        self.starts = self.counts.cumsum(0) - self.counts
        self.order = torch.argsort(gallery_classes, stable=True)

    def similarities(self, s: Tensor, classes: Tensor, columns: Tensor | None = None) -> Tensor:
        """The positives ``[B, R]`` of the queries in ``columns`` of ``s``, falling; self and unused places are -inf,
        last. ``columns`` None: all."""
        count = self.counts[classes]
        offset = torch.arange(int(count.max()), device=s.device)
        place = (self.starts[classes, None] + offset).clamp_max(len(self.order) - 1)
        if columns is None:
            columns = torch.arange(s.shape[1], device=s.device)
        value = s[self.order[place], columns[:, None]].masked_fill(offset >= count[:, None], -torch.inf)
        return _sort_(value).flip(1)

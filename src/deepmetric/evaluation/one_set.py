"""Exact ranking of a set's items among themselves with half the products: a similarity serves both of its items.

Every item meets the items after it as a column of a tile and those before it as a row of one. It keeps its most
similar negatives, as many as it has positives, and how many negatives are as similar as its best positive; more no
metric asks for. Its positives are compared before: in the order taken here the items of a class stand together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deepmetric.evaluation.ranks import (
    BEYOND,
    BLOCK_ROWS,
    COUNTED,
    MANY_ROWS,
    Ranks,
    count_at_least,
    top_values,
)
from deepmetric.evaluation.similarity import Similarity, Space, prepare, product

MOST = 64  # positives: with more, keeping as many negatives of every item takes nearly as long as the products saved
YIELDED = 8192  # queries


def rank_within(
    items: Tensor,  # [N, d] floating, finite
    classes: Tensor,  # [N] int64
    relevant: Tensor,  # [N] int64, the others of its class: some have any, none more than MOST
    similarity: Similarity,  # one that is symmetric: not "euclidean", which has a bias
    block_bytes: int,
) -> Iterator[Ranks]:
    """:func:`~deepmetric.evaluation.neighbours.rank_positives` of items that search among themselves, each left out of
    its own ranking."""
    order = torch.argsort(classes, stable=True)
    order = order[torch.argsort(relevant[order], stable=True)]  # classes stay together, those of one size too
    classes, relevant = classes[order], relevant[order]
    found = _Found(prepare(items[order], None, similarity), classes, relevant)
    found.search(block_bytes)
    for rows in torch.arange(len(order), device=order.device).split(YIELDED):
        yield found.ranks(rows, order)


class _Found:
    """What is known of each item's positives and negatives, in the order of the search."""

    def __init__(self, space: Space, classes: Tensor, relevant: Tensor) -> None:
        self.space, self.classes, self.relevant = space, classes, relevant
        self.items = space.gallery
        n, self.most = len(classes), int(relevant.max())
        # What counts as similar as each positive, falling; -inf where there are fewer.
        self.line = self.items.new_full((n, self.most), -torch.inf)
        # Falling; the first ``relevant`` are the most similar there are.
        self.negative = self.line.clone()
        self.above = torch.zeros_like(relevant)  # negatives as similar as the best positive
        # The least of the negatives that are kept, to be surpassed by others. Single items keep none.
        self.bar = torch.where(relevant > 0, -torch.inf, torch.inf).to(self.items.dtype)

    def search(self, block_bytes: int) -> None:
        n, size = len(self.items), self.items.element_size()
        side = int((block_bytes // size) ** 0.5) // BLOCK_ROWS * BLOCK_ROWS
        width = max(min(side, MANY_ROWS), self.most + 1, BLOCK_ROWS)
        height = max(block_bytes // size // width, width)
        blocks = self._blocks(width)
        for lo, hi in blocks:
            self._take_positives(lo, hi)
        self.best_line = torch.where(self.relevant > 0, self.line[:, 0], torch.inf)
        buffer = self.items.new_empty(min(height, n) * width)
        for lo, hi in blocks:
            # Whole vectors of columns: the product is much slower otherwise. Those from ``hi`` on come again.
            columns = self.items[lo : lo + width].T
            for start in range(lo, n, height):
                rows = self.items[start : start + height]
                s = buffer[: len(rows) * columns.shape[1]].view(len(rows), -1)
                product(rows, columns, s)
                s, after = s[:, : hi - lo], start
                if start == lo:
                    s[: hi - lo].masked_fill_(self._same(lo, hi), -torch.inf)
                    after = hi
                self._meet_columns(s, lo, hi)
                self._meet_rows(s[after - start :], after, lo, hi)

    def _blocks(self, width: int) -> list[tuple[int, int]]:
        """Ranges of whole classes, of at most so many items."""
        n = len(self.classes)
        ends = (self.classes[1:] != self.classes[:-1]).nonzero().squeeze(1) + 1
        ends = torch.cat([ends, ends.new_tensor([n])])
        blocks, lo = [], 0
        while lo < n:
            at = int(torch.searchsorted(ends, lo + width, right=True))
            hi = int(ends[at - 1])
            blocks.append((lo, hi))
            lo = hi
        return blocks

    def _same(self, lo: int, hi: int) -> Tensor:
        return self.classes[lo:hi, None] == self.classes[lo:hi]

    def _take_positives(self, lo: int, hi: int) -> None:
        deepest = int(self.relevant[hi - 1])
        if not deepest:
            return
        items = self.items[lo:hi]
        s = product(items, items.T, items.new_empty(hi - lo, hi - lo))
        s.masked_fill_(~self._same(lo, hi).fill_diagonal_(False), -torch.inf)
        rows = torch.arange(lo, hi, device=s.device)
        self.line[lo:hi, :deepest] = self.space.tie_line(s.topk(deepest, dim=1).values, rows)

    def _meet_columns(self, s: Tensor, lo: int, hi: int) -> None:
        """The items ``lo`` to ``hi``, each with the others in its column of ``s``."""
        deepest = int(self.relevant[hi - 1])
        if not deepest:
            return
        value, _ = top_values(s, min(deepest, len(s)))
        self._keep(slice(lo, hi), value)
        self.above[lo:hi] += count_at_least(s, self.best_line[lo:hi])

    def _meet_rows(self, s: Tensor, start: int, lo: int, hi: int) -> None:
        """The items from ``start`` on, each with the others in its row of ``s``."""
        passed = s.new_empty(COUNTED, hi - lo)
        for part in s.split(COUNTED):
            rows = slice(start, start + len(part))
            better = (part.amax(dim=1) > self.bar[rows]).nonzero().squeeze(1)
            if len(better):
                self._keep(better + start, part[better])
            line = self.best_line[rows, None]
            self.above[rows] += torch.ge(part, line, out=passed[: len(part)]).sum(dim=1).long()
            start += len(part)

    def _keep(self, which: Tensor | slice, value: Tensor) -> None:
        kept = torch.cat([self.negative[which], value], dim=1).topk(self.most, dim=1).values
        self.negative[which] = kept
        last = (self.relevant[which] - 1).clamp_min(0)
        self.bar[which] = kept.gather(1, last[:, None]).squeeze(1)

    def ranks(self, rows: Tensor, order: Tensor) -> Ranks:
        relevant, line = self.relevant[rows], self.line[rows]
        negatives = torch.searchsorted(-self.negative[rows], -line, right=True)
        ordinal = torch.arange(1, self.most + 1, device=rows.device).expand_as(line)
        beyond = (line == -torch.inf) | (negatives >= relevant[:, None])
        first = torch.where(relevant > 0, 1 + self.above[rows], BEYOND)
        rank = (ordinal + negatives).masked_fill_(beyond, BEYOND)
        return Ranks(order[rows], relevant, first, rank, ordinal)

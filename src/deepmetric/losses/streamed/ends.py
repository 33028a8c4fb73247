"""The distinct ends of all positive pairs, sorted so that neighbouring classes of one shape are one batched product."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from deepmetric.losses.streamed.comparison import Comparison
from deepmetric.losses.streamed.matching import Matches, match
from deepmetric.losses.streamed.rows import unit_rows
from deepmetric.losses.streamed.side import inverse
from deepmetric.losses.streamed.tiles import Hidden, HiddenClasses, HiddenPairs


class Block(NamedTuple):
    """``number`` classes, one after the other, of ``rows`` ends each: ``left`` anchors and then other references. The
    second ends of pairs are those from row ``second`` on."""

    number: int
    left: int
    rows: int
    second: int

    @property
    def size(self) -> int:
        """Entries of the blocks [number, left, rows - second] in which the pairs are."""
        return self.number * self.left * (self.rows - self.second)


class Ends:
    """Anchors that have positives, and their positives, each once; over several processes those of all of them.

    The second end of a pair has a row of its own unless it is known by its position to be an anchor's copy: in a batch
    with itself, or in a memory without gradient whose row is equal.
    """

    def __init__(self, pairs: Comparison) -> None:
        self.pairs = pairs
        positives, processes = pairs.positive_list, pairs.processes
        anchor, (used, ref) = positives.anchor, positives.ref.unique(return_inverse=True)
        seconds = pairs.refs[used].to(pairs.anchors.dtype)
        if pairs.normalize_refs:
            seconds = unit_rows(seconds)
        if processes is not None:
            ref = ref + sum(processes.counts(used)[: processes.rank])
            anchor, ref, seconds = (positives.everywhere(part) for part in (anchor, ref, seconds))
        firsts, left = anchor.unique(return_inverse=True)
        ref_labels = pairs.labels.new_zeros(len(seconds)).index_copy(0, ref, pairs.labels[anchor])
        copy = self._copies(firsts, used, seconds, ref_labels)
        new = copy < 0
        rows = torch.cat([pairs.anchors[firsts], seconds[new]])
        labels = torch.cat([pairs.labels[firsts], ref_labels[new]])
        right = torch.where(new, new.cumsum(0) + (len(firsts) - 1), copy)[ref]
        own = pairs.own[firsts] if pairs.own is not None else firsts.new_full((len(firsts),), -1)
        self._sort(rows, labels, own, left, right, shared=bool((copy >= 0).any()))

    def _copies(self, firsts: Tensor, used: Tensor, seconds: Tensor, ref_labels: Tensor) -> Tensor:
        """Which of the first ends each second end is, -1 for none."""
        pairs, copy = self.pairs, torch.full((len(seconds),), -1, device=firsts.device)
        apart = pairs.refs.requires_grad and pairs.refs is not pairs.anchors  # with gradients of their own
        if pairs.own is None or pairs.processes is not None or apart or not len(used):
            return copy
        own = pairs.own[firsts]
        place = torch.searchsorted(used, own).clamp_max_(len(used) - 1)
        same = (used[place] == own) & (ref_labels[place] == pairs.labels[firsts])
        same &= (seconds[place] == pairs.anchors[firsts]).all(1)
        which = same.nonzero()[:, 0]
        copy[place[which]] = which
        return copy

    def _sort(
        self, rows: Tensor, labels: Tensor, own: Tensor, left: Tensor, right: Tensor, shared: bool
    ) -> None:
        """By shape of the class, by class, first ends first."""
        k, firsts = len(rows), len(own)
        classes = labels.unique(return_inverse=True)[1]
        number = int(classes.max()) + 1 if k else 0
        every = torch.bincount(classes, minlength=number)
        first = torch.bincount(classes[:firsts], minlength=number)
        by_shape = (first * (k + 1) + every).argsort(stable=True)
        first, every, classes = first[by_shape], every[by_shape], inverse(by_shape)[classes]
        behind = torch.arange(k, device=rows.device) >= firsts
        order = (2 * classes + behind).argsort(stable=True)
        place = inverse(order)
        second = torch.zeros_like(first) if shared else first  # the row of a class where second ends begin
        width = every - second
        start, entry = every.cumsum(0) - every, (first * width).cumsum(0) - first * width
        of_pair = classes[left]
        in_class = place[left] - start[of_pair], place[right] - (start + second)[of_pair]
        self.at = entry[of_pair] + in_class[0] * width[of_pair] + in_class[1]  # [P] entry of each pair
        self.rows, self.labels = rows[order], labels[order]  # [K, d] with gradient, [K]
        self.first = ~behind[order]  # [K] bool
        self.own = torch.cat([own, own.new_full((k - firsts,), -1)])[order]  # [K]
        self.shapes = torch.stack([first, every, second], 1).tolist()

    def chunks(self, most: int) -> list[list[Block]]:
        """All classes in chunks of up to ``most`` ends; a larger class is one alone."""
        chunks: list[list[Block]] = []
        rows = most
        for left, every, second in self.shapes:
            if rows + every > most:
                chunks.append([])
                rows = 0
            rows += every
            blocks = chunks[-1]
            if blocks and blocks[-1][1:] == (left, every, second):
                blocks[-1] = blocks[-1]._replace(number=blocks[-1].number + 1)
            else:
                blocks.append(Block(1, left, every, second))
        return chunks

    @cached_property
    def _matches(self) -> Matches:
        """The references of the ends' classes, all of which are some anchor's class."""
        pairs, known = self.pairs, self.pairs.matches
        if known.ref is not None:
            near = known.ref.unique()
        else:
            assert known.ref_class is not None
            near = (known.ref_class >= 0).nonzero()[:, 0]
        found = match(self.labels, pairs.ref_labels[near], pairs.listed)
        if found.ref is not None:
            return found._replace(ref=near[found.ref])
        assert found.ref_class is not None
        ref_class = torch.full_like(pairs.ref_labels, -1, dtype=torch.int64)
        return found._replace(ref_class=ref_class.index_copy(0, near, found.ref_class))

    def hidden(self, rows: slice, width: int) -> Hidden:
        """The references that are no negatives of the ends ``rows``: those of their class and own copies."""
        matches, m = self._matches, len(self.pairs.refs)
        own = self.own[rows]
        row = (own >= 0).nonzero()[:, 0]
        rank = own[row]
        if matches.anchor is None or matches.ref is None:
            assert matches.anchor_class is not None
            assert matches.ref_class is not None
            by_rank = rank.argsort()
            also = HiddenPairs(row[by_rank], rank[by_rank], 0, m, width)
            dtype = self.rows.dtype
            return HiddenClasses(matches.anchor_class[rows].to(dtype), matches.ref_class.to(dtype), also)
        inside = ((matches.anchor >= rows.start) & (matches.anchor < rows.stop)).nonzero()[:, 0]
        row = torch.cat([row, matches.anchor[inside] - rows.start])
        rank = torch.cat([rank, matches.ref[inside]])
        by_rank = rank.argsort()
        return HiddenPairs(row[by_rank], rank[by_rank], 0, m, width)

"""A sum over the negatives for every positive pair, from one row for each distinct end of the pairs.

A triangle of anchor a, positive p and negative n costs exp(s (a·n + p·n)) in the angular loss. That is E_a[n] E_p[n]
with E_r[n] = exp(s r·n), so the sum S_ap of a pair is an entry of the Gram matrix of E, and E needs a row for each end,
not for each pair. The ends of a class have the same negatives (E is 0 at other references), and pairs are within a
class, so small products within classes are all that there is beside E.

The slope of a pair, g_ap = 1 / (exp(t_ap) + S_ap), is known once its sum is whole; the anchor's gradient is then
s Σ_n W_a[n] n with W_a[n] = E_a[n] Σ_p g_ap E_p[n], one row an anchor. So the ends are taken in chunks of whole
classes, twice over the references: for the sums, then for the gradient. E of a chunk is kept for the second time if
it takes no more than `KEPT`, and else computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from deepmetric.losses.streamed.comparison import Comparison
from deepmetric.losses.streamed.ends import Block, Ends
from deepmetric.losses.streamed.not_compiled import not_compiled
from deepmetric.losses.streamed.tiles import LOG2E, Buffers, tile_width

KEPT = 2**25  # bytes, on a CPU
# Ends in a chunk: with fewer a way over the references is not worth it; and as many where nothing is kept.
FEWEST, MOST = 64, 1024


@not_compiled
def triangle_softplus(pairs: Comparison, scale: float, threshold: Tensor) -> tuple[Tensor, int]:
    """Σ over positive pairs (a, p) of log(1 + Σ_n exp(scale (a·n + p·n) - threshold_ap)) over the negatives n of a, a
    scalar; and the number of pairs. Over several processes both are of the pairs of all.

    ``threshold`` [P] stands beside the pairs of ``pairs.positive_list``. Values must be dot products, and
    exp(2 * scale * their largest) in range. First-order gradients for anchors, references and thresholds; they are
    computed beside the value, and nothing of the references is kept for them.
    """
    ends = Ends(pairs)
    threshold = pairs.positive_list.everywhere(threshold)
    order = ends.at.argsort()  # the pairs of a chunk side by side
    rows, refs, threshold = ends.rows, pairs.refs, threshold[order]
    if not torch.is_grad_enabled():
        rows, refs, threshold = rows.detach(), refs.detach(), threshold.detach()
    job = Job(pairs, ends, ends.at[order], scale)
    return _Triangles.apply(rows, refs, threshold, job), len(threshold)


class Job(NamedTuple):
    """Whose triangles are summed."""

    pairs: Comparison
    ends: Ends
    at: Tensor  # [P] entry of each pair in the blocks, ascending
    scale: float


class _Triangles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, refs: Tensor, threshold: Tensor, job: Job) -> Tensor:
        need_rows, need_refs = ctx.needs_input_grad[:2]
        by_rows = torch.zeros_like(rows) if need_rows or need_refs else None
        by_refs = torch.zeros_like(refs) if need_refs else None
        by_threshold = torch.zeros_like(threshold)
        total = threshold.new_zeros(())
        ctx.processes = job.pairs.processes
        with torch.autocast(device_type=rows.device.type, enabled=False):
            for chunk in _chunks(job, rows, refs):
                sums = chunk.sums()
                if ctx.processes is not None:
                    ctx.processes.sum_(sums)
                t = threshold[chunk.pairs]
                total += softplus(sums.log() - t, threshold=40.0).sum()
                slope = 1 / (t.exp() + sums)
                by_threshold[chunk.pairs] = -sums * slope
                if by_rows is not None:
                    chunk.add_gradients(slope * job.scale, by_rows, by_refs)
        ctx.save_for_backward(by_rows, by_refs, by_threshold)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_rows, by_refs, by_threshold = ctx.saved_tensors
        need_rows, need_refs, need_threshold, _ = ctx.needs_input_grad
        # Rows and references have this process's part of the gradient, thresholds all of it (see Processes).
        of_all = ctx.processes.sum_(grad.clone()) if ctx.processes is not None else grad
        return (
            by_rows * of_all if need_rows else None,
            by_refs * of_all if need_refs else None,
            by_threshold * grad if need_threshold else None,
            None,
        )


def _chunks(job: Job, rows: Tensor, refs: Tensor) -> Iterator[_Chunk]:
    """The ends in chunks of whole classes, the same in all processes."""
    longest, processes = len(refs), job.pairs.processes
    if processes is not None:
        longest = int(processes.max_(torch.tensor(longest, device=rows.device)))
    kept = KEPT * (16 if rows.is_cuda else 1) // rows.element_size()  # on a GPU tiles are larger too
    most = kept // max(longest, 1)
    space, norms = Buffers(rows, 0), _norms(refs, rows.dtype) if job.pairs.normalize_refs else None
    every = rows.new_empty(min(kept, len(rows) * len(refs)))
    row = entry = 0
    for blocks in job.ends.chunks(most if most >= FEWEST else MOST):
        chunk = _Chunk(job, blocks, row, entry)
        chunk.ends, chunk.refs, chunk.norms, chunk.space = rows[chunk.rows], refs, norms, space
        if len(chunk.ends) * len(refs) <= len(every):
            chunk.kept = every
        yield chunk
        row, entry = chunk.rows.stop, chunk.entries.stop


def _norms(refs: Tensor, dtype: torch.dtype) -> Tensor:
    """What references are divided by [M, 1], computed once for all ways over them."""
    parts = [torch.linalg.vector_norm(part.to(dtype), dim=1, keepdim=True) for part in refs.split(8192)]
    norms = torch.cat(parts)
    return norms.add_(norms == 0)


class _Chunk:
    """Classes whose ends are ``rows`` of all, and whose pairs are ``pairs`` of all."""

    ends: Tensor
    refs: Tensor
    norms: Tensor | None  # [M, 1]; None: references are as they should be
    space: Buffers
    kept: Tensor | None = None  # of E, tile after tile

    def __init__(self, job: Job, blocks: list[Block], row: int, entry: int) -> None:
        self.job, self.blocks = job, blocks
        self.rows = slice(row, row + sum(block.number * block.rows for block in blocks))
        self.entries = slice(entry, entry + sum(block.size for block in blocks))
        edges = job.at.new_tensor([self.entries.start, self.entries.stop])
        self.pairs = slice(*torch.searchsorted(job.at, edges).tolist())
        self.at = job.at[self.pairs] - entry

    def _tiles(self, *, again: bool = False) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """References of a tile, as unit rows, and E of the chunk's ends; ``again``: as kept, if it was kept."""
        n = len(self.ends)
        # The many small products are worth a tile that is wider than others.
        width = self.job.pairs.width or 2 * tile_width(n, self.ends)
        scaled = self.ends * (self.job.scale * LOG2E)
        hidden = self.job.ends.hidden(self.rows, width)
        for lo in range(0, len(self.refs), width):
            hi = min(lo + width, len(self.refs))
            refs = self.refs[lo:hi].to(scaled.dtype)
            if self.norms is not None:
                refs = torch.div(refs, self.norms[lo:hi], out=self.space.rows(refs.shape))
            if self.kept is not None:
                e = self.kept[n * lo : n * hi].view(n, hi - lo)
            else:
                e = self.space(2, n, hi - lo)
            if not again or self.kept is None:
                self._exponentials(scaled, refs, e)
                hidden.of_tile(lo, hi, self.space(3, n, hi - lo))(e, 0.0)
            yield slice(lo, hi), refs, e

    def _exponentials(self, scaled: Tensor, refs: Tensor, e: Tensor) -> None:
        """2 to the power of the products of rows, [n, m] as ``e``."""
        refs, n = strips(refs), len(scaled)
        product = self.space(3, len(refs) * n, refs.shape[1]).view(len(refs), n, refs.shape[1])
        torch.bmm(scaled.expand(len(refs), *scaled.shape), refs.mT, out=product)
        torch.exp2(product, out=e.view(n, len(refs), refs.shape[1]).transpose(0, 1))

    def _of_blocks(self, e: Tensor) -> list[Tensor]:
        return _pieces(e, [(block.number, block.rows, e.shape[1]) for block in self.blocks])

    def _of_pairs(self, entries: Tensor) -> list[Tensor]:
        return _pieces(entries, [(b.number, b.left, b.rows - b.second) for b in self.blocks])

    def sums(self) -> Tensor:
        """S of the chunk's pairs."""
        entries = self.ends.new_zeros(self.entries.stop - self.entries.start)
        gram = self._of_pairs(entries)
        for _, _, e in self._tiles():
            for block, part, rows in zip(self.blocks, gram, self._of_blocks(e)):
                part.baddbmm_(rows[:, : block.left], rows[:, block.second :].mT)
        return entries[self.at]

    def add_gradients(self, slope: Tensor, by_rows: Tensor, by_refs: Tensor | None) -> None:
        """Add what S with these slopes gives: for the anchors, or with ``by_refs`` for all ends and the references."""
        entries = self.ends.new_zeros(self.entries.stop - self.entries.start)
        entries[self.at] = slope
        weights = self._of_pairs(entries)
        index = torch.arange(self.rows.start, self.rows.stop, device=entries.device)
        # Of each class: how many rows take a gradient, and the first of the rows that they are beside.
        if by_refs is None:
            index = index[self.job.ends.first[self.rows]]
            taking = [(block.left, block.second) for block in self.blocks]
        else:
            weights = [_both_ways(block, weight) for block, weight in zip(self.blocks, weights)]
            taking = [(block.rows, 0) for block in self.blocks]
        total = self.ends.new_zeros(threads(self.ends), len(index), self.ends.shape[1])
        for where, refs, e in self._tiles(again=True):
            w = self.space(4, len(index), e.shape[1])
            parts = _pieces(w, [(b.number, n, e.shape[1]) for b, (n, _) in zip(self.blocks, taking)])
            for part, weight, rows, (n, beside) in zip(parts, weights, self._of_blocks(e), taking):
                torch.bmm(weight, rows[:, beside:], out=part).mul_(rows[:, :n])
            of_strip = strips(refs)
            total[: len(of_strip)].baddbmm_(w.view(len(w), len(of_strip), -1).transpose(0, 1), of_strip)
            if by_refs is not None:
                by_refs[where].addmm_(w.t(), self.ends)
        by_rows[index] = total.sum(0)


def threads(like: Tensor) -> int:
    """How many parts a product is shared out in."""
    return 1 if like.is_cuda else min(torch.get_num_threads(), 8)


def strips(rows: Tensor) -> Tensor:
    """References [m, d] as [threads, m / threads, d], or [1, m, d] where they cannot be shared out: a product with few
    rows is quicker where each thread has references of its own."""
    number = threads(rows)
    return rows.view(number if len(rows) % number == 0 else 1, -1, rows.shape[1])


def _pieces(whole: Tensor, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    """Consecutive parts of a contiguous tensor."""
    parts = whole.view(-1).split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes)]


def _both_ways(block: Block, weight: Tensor) -> Tensor:
    """The weights of pairs [number, left, rows - second] between all ends, as first and as second."""
    every = weight.new_zeros(block.number, block.rows, block.rows)
    every[:, : block.left, block.second :] += weight
    every[:, block.second :, : block.left] += weight.mT
    return every

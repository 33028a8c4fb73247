"""Distances and masks of a block of anchors against all references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed.rows import unit_rows

Form = Literal["distance", "squared_distance", "cosine"]

# Numbers in one matrix of a block: 8 MiB of float32.
BLOCK = 2**21


def rows_at_once(width: int) -> int:
    """How many rows of ``width`` numbers make a block; at least one."""
    return max(BLOCK // max(width, 1), 1)


class Block(NamedTuple):
    """Anchors ``first``, ``first + 1``, ... against all references, without gradient."""

    first: int
    distance: Tensor  # [B, M] in the wanted form; for "cosine" the negated cosine
    order: Tensor  # [B, M] sorts a row like the distance, with known rounding: squared, or negated cosine
    noise: Tensor  # [B, M], values of `order` that differ by no more are ties
    positive: Tensor  # [B, M] bool, same label, own copy left out
    negative: Tensor  # [B, M] bool, another label, own copy left out

    def anchors(self, row: Tensor) -> Tensor:
        """Positions in the batch of rows of this block."""
        return row + self.first

    def pairs(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and references of the pairs of ``mask`` [B, M]."""
        row, ref = mask.nonzero(as_tuple=True)
        return self.anchors(row), ref

    def further(self, rows: Tensor | slice, than: Tensor) -> Tensor:
        """Whether each reference is further from the anchors ``rows`` than the orders ``than`` [P], [P, M]."""
        return self.order[rows] - than[:, None] > self.noise[rows]

    def nearer(self, rows: Tensor | slice, than: Tensor) -> Tensor:
        """Whether each reference is nearer to the anchors ``rows`` than the orders ``than`` [P], [P, M]."""
        return than[:, None] - self.order[rows] > self.noise[rows]


class Rows:
    """Anchors and references of a batch, normalised or as given.

    References are never copied: instead of unit rows, the columns of the product are divided by their norms,
    and references of lower precision are converted a part at a time.
    """

    def __init__(self, batch: Batch, *, normalize: bool = True) -> None:
        self.batch, self.normalize = batch, normalize
        norms = torch.cat([torch.linalg.vector_norm(part, dim=1) for part in self._parts()])
        self.ref_norms = torch.where(norms > 0, norms, 1)  # a zero row stays zero
        self.ref_squares = (norms > 0).to(norms.dtype) if normalize else norms.square()

    def anchors(self, index: Tensor | slice) -> Tensor:
        rows = self.batch.anchors[index]
        return unit_rows(rows) if self.normalize else rows

    def refs(self, index: Tensor) -> Tensor:
        rows = self.batch.refs[index].to(self.batch.anchors.dtype)
        return rows / self.ref_norms[index, None] if self.normalize else rows

    def dots(self, rows: Tensor) -> Tensor:
        """Dot products [B, M] of prepared rows [B, d] with all references."""
        with torch.autocast(device_type=rows.device.type, enabled=False):
            parts = [rows @ part.T for part in self._parts()]
        dots = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return dots.div_(self.ref_norms) if self.normalize else dots

    def squared(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances [B, M] of prepared rows from all references, and their rounding.

        A distance within the rounding of |x|² + |r|² - 2 x·r is 0: an exact copy must count as one.
        """
        norms = rows.square().sum(1, keepdim=True)
        noise = 8 * torch.finfo(rows.dtype).eps * (norms + self.ref_squares)
        squared = self.dots(rows).mul_(-2).add_(norms).add_(self.ref_squares)
        return torch.where(squared > noise, squared, 0), noise

    def _parts(self) -> list[Tensor] | Iterator[Tensor]:
        """The references in the anchors' dtype."""
        refs, dtype = self.batch.refs, self.batch.anchors.dtype
        if refs.dtype == dtype:
            return [refs]
        return (part.to(dtype) for part in refs.split(rows_at_once(refs.shape[1])))


def blocks(
    batch: Batch, form: Form = "distance", *, normalize: bool = True, width: int = 0
) -> Iterator[Block]:
    """All anchors against all references, as many anchors at a time as memory allows.

    ``width``: numbers that the caller needs for one anchor, if more than M. Without references nothing comes.
    """
    rows = Rows(batch, normalize=normalize or form == "cosine")
    n, m = len(batch.anchors), len(batch.refs)
    if not m:
        return
    step = rows_at_once(max(m, width))
    column = torch.arange(m, device=batch.refs.device)
    for first in range(0, n, step):
        block = slice(first, first + step)
        x = rows.anchors(block)
        if form == "cosine":
            order = rows.dots(x).neg_()
            noise = order.new_tensor(8 * torch.finfo(order.dtype).eps).expand_as(order)
        else:
            order, noise = rows.squared(x)
        same = batch.labels[block, None] == batch.ref_labels
        other = ~same
        if batch.own is not None:
            elsewhere = batch.own[block, None] != column
            same &= elsewhere
            other &= elsewhere
        yield Block(first, order.sqrt() if form == "distance" else order, order, noise, same, other)

"""What a pair's value is, from one matrix product: dot product, squared distance or distance."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deepmetric.losses.streamed.tiles import Buffers, take_columns

Kind = Literal["dot", "squared", "distance"]


class Distances(NamedTuple):
    """A tile of distances, and whether a 0 may be among them."""

    tile: Tensor
    zero: bool

    def columns(self, columns: Tensor) -> Distances:
        return Distances(take_columns(self.tile, columns), self.zero)


class Metric(NamedTuple):
    """Values of tiles, and the way back from weights of values to gradients of rows.

    With V a value and W = dA/dV, the anchor's gradient is ``slope * (x * sum(W') - sum(W' m))`` with W' = W, or
    W / D for distances. ``unit`` says that all rows have norm 1: then D² = 2 - 2S, and the part along x, which
    the normalisation takes out again, is left out. (A row of zeros, which has no unit row, is so at distance √2 from
    every other: as of a cosine of 0.)
    """

    kind: Kind
    unit: bool
    scale: float = 1.0  # the tile holds scale * value

    @property
    def slope(self) -> float:
        return {"dot": -1.0, "squared": 2.0, "distance": 1.0}[self.kind]

    @property
    def radial(self) -> bool:
        return self.kind != "dot" and not self.unit

    def bound(self) -> float:
        """The largest magnitude of a scaled value; infinite where it is not known."""
        if not self.unit:
            return float("inf")
        return abs(self.scale) * {"dot": 1.0, "squared": 4.0, "distance": 2.0}[self.kind]

    def in_range(self, dtype: torch.dtype) -> bool:
        """Whether exp of a scaled value, times as many pairs as there may be, neither overflows nor vanishes."""
        return self.bound() <= (60 if dtype == torch.float32 else 500)

    def anchors(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Anchors [n, d] with what is constant already multiplied in; their squared norms [n, 1] where needed."""
        inside = 1.0 if self.kind == "distance" else self.scale  # a square root comes between
        factor = inside if self.kind == "dot" else -2.0 * inside
        norms = x.square().sum(1, keepdim=True).mul_(inside) if self.radial else None
        return x * factor if factor != 1 else x, norms

    def values(
        self, x: Tensor, norms: Tensor | None, refs: Tensor, buffers: Buffers, preserved: bool = False
    ) -> tuple[Tensor, Distances | None]:
        """``scale * value`` [n, m] of prepared anchors and references, and for distances the distance apart, in the
        same tile if its values will be ``preserved``."""
        n, m = x.shape[0], refs.shape[0]  # len() of a tensor takes as long as an operation
        tile = torch.mm(x, refs.t(), out=buffers(0, n, m))
        if self.kind == "dot":
            return tile, None
        inside = 1.0 if self.kind == "distance" else self.scale
        if norms is None:
            tile.add_(2.0 * inside)
        else:
            tile.add_(refs.square().sum(1), alpha=inside).add_(norms)
        zero = _snap(tile, norms, inside)
        if self.kind == "squared":
            return tile, None
        tile.sqrt_()
        if preserved and self.scale == 1:
            return tile, Distances(tile, zero)
        return torch.mul(tile, self.scale, out=buffers(1, n, m)), Distances(tile, zero)

    def to_rows(self, weights: Tensor, distances: Distances | None) -> Tensor:
        """W' in place of W."""
        if distances is None:
            return weights
        distance, zero = distances
        if zero:
            # At distance 0 the direction is unknown and the derivative taken as 0: 0 / tiny.
            weights.mul_(distance.sign())
            distance = distance.clamp_min(torch.finfo(weights.dtype).tiny)
        return weights.div_(distance)

    def of_pairs(self, x: Tensor, refs: Tensor) -> Tensor:
        """Values [P] of rows that stand beside each other, [P, d] each. Not scaled."""
        if self.kind == "dot":
            return (x * refs).sum(1)
        squared, _ = self._apart(x, refs)
        return squared if self.kind == "squared" else squared.sqrt_()

    def pair_gradients(self, x: Tensor, refs: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients [P, d] for both rows of pairs whose values have the gradient ``g`` [P]."""
        if self.kind == "dot":
            return refs * g[:, None], x * g[:, None]
        squared, apart = self._apart(x, refs)
        slope = 2 * g
        if self.kind == "distance":
            slope = g / squared.sqrt().clamp_min_(torch.finfo(x.dtype).tiny)
        apart.mul_(torch.where(squared > 0, slope, 0)[:, None])
        return apart, -apart

    def _apart(self, x: Tensor, refs: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances [P], 0 where a tile has 0 too, and the differences [P, d]."""
        apart = x - refs
        squared = apart.square().sum(1)
        if self.unit:  # nothing but for rows of zeros
            for rows in (x, refs):
                squared += 1 - torch.linalg.vector_norm(rows, dim=1).round_()
        noise = 16 * torch.finfo(x.dtype).eps * (1.0 if self.unit else x.square().sum(1))
        return torch.where(squared > noise, squared, 0), apart


def _snap(squared: Tensor, norms: Tensor | None, scale: float) -> bool:
    """Scaled squared distances below the rounding of the product become 0: an exact copy is one. Returns whether
    there may be any."""
    if not squared.numel():
        return False
    noise = 16 * torch.finfo(squared.dtype).eps * (abs(scale) if norms is None else norms.abs())
    if not squared.is_cuda:
        nearest = squared.amin(1, keepdim=True) if scale > 0 else squared.amax(1, keepdim=True).neg_()
        if not bool((nearest <= noise).any()):
            return False
    squared.masked_fill_(squared * math.copysign(1, scale) <= noise, 0.0)
    return True

"""What a pair's value is, from one matrix product: dot product, squared distance or distance."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deepmetric.losses.streamed.tiles import Buffers

Kind = Literal["dot", "squared", "distance"]


class Metric(NamedTuple):
    """Values of tiles, and the way back from weights of values to gradients of rows.

    With V a value and W = dA/dV, the anchor's gradient is ``slope * (x * sum(W') - sum(W' m))`` with W' = W, or
    W / D for distances. ``unit`` says that all rows have norm 1: then D² = 2 - 2S, and the part along x, which
    the normalisation takes out again, is left out.
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

    def anchors(self, x: Tensor) -> Tensor:
        """Anchors [n, d] with what is constant already multiplied in."""
        factor = self.scale if self.kind == "dot" else -2.0
        return x * factor if factor != 1 else x

    def values(
        self, x: Tensor, norms: Tensor | None, refs: Tensor, buffers: Buffers
    ) -> tuple[Tensor, Tensor | None]:
        """``scale * value`` [n, m] of prepared anchors and references, and for distances the distance apart."""
        n, m = len(x), len(refs)
        tile = torch.mm(x, refs.t(), out=buffers(0, n, m))
        if self.kind == "dot":
            return tile, None
        if self.unit:
            tile.add_(2.0)
            noise = None
        else:
            assert norms is not None
            tile.add_(refs.square().sum(1)).add_(norms)
            noise = norms
        _snap(tile, noise)
        distance = None
        if self.kind == "distance":
            distance = tile.sqrt_()
            tile = buffers(1, n, m).copy_(distance)
        if self.scale != 1:
            tile.mul_(self.scale)
        return tile, distance

    def to_rows(self, weights: Tensor, distance: Tensor | None) -> Tensor:
        """W' in place of W."""
        if distance is None:
            return weights
        # At distance 0 the direction is unknown and the derivative taken as 0: 0 / tiny.
        tiny = torch.finfo(weights.dtype).tiny
        if distance.is_cuda or not bool(distance.amin() > 0):
            weights.mul_(distance.sign())
        return weights.div_(distance.clamp_min_(tiny))

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
            slope = g / squared.sqrt_().clamp_min_(torch.finfo(x.dtype).tiny)
        apart.mul_(torch.where(squared > 0, slope, 0)[:, None])
        return apart, -apart

    def _apart(self, x: Tensor, refs: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances [P], 0 where a tile has 0 too, and the differences [P, d]."""
        apart = x - refs
        squared = apart.square().sum(1)
        noise = 16 * torch.finfo(x.dtype).eps * (1.0 if self.unit else x.square().sum(1))
        return torch.where(squared > noise, squared, 0), apart


def _snap(squared: Tensor, norms: Tensor | None) -> None:
    """Squared distances below the rounding of the product become 0: an exact copy is one."""
    if not squared.numel():
        return
    eps = 8 * torch.finfo(squared.dtype).eps
    if norms is None:
        # Exactly 0 below the threshold, unchanged above it.
        torch.nn.functional.threshold(squared, 2 * eps, 0.0, inplace=True)
    elif squared.is_cuda or bool((squared.amin(1, keepdim=True) <= 2 * eps * norms).any()):
        squared.masked_fill_(squared <= 2 * eps * norms, 0.0)

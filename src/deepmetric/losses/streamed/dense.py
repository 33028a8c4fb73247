"""The same reductions over one full matrix in plain torch: for small batches, where launching operations is all
the cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepmetric.losses.streamed.metric import Kind
from deepmetric.losses.streamed.tiles import BIG

if TYPE_CHECKING:
    from deepmetric.losses.streamed.listed import PairList
    from deepmetric.losses.streamed.sums import Elementwise

# Pairs up to which the matrix is as fast as tiles; 256 x 256.
MATRIX = 2**16
# Pairs of a positive and a negative up to which they are all written out.
TRIPLETS = 2**18


def value_matrix(x: Tensor, refs: Tensor, kind: Kind, unit: bool) -> Tensor:
    """Values [N, M] of all pairs, differentiable; distances below rounding are 0 with derivative 0."""
    product = x @ refs.T
    if kind == "dot":
        return product
    eps = 16 * torch.finfo(x.dtype).eps
    if unit:
        squared, noise = 2 - 2 * product, eps
    else:
        norms = x.square().sum(1)[:, None]
        squared, noise = norms + refs.square().sum(1) - 2 * product, (eps * norms).detach()
    apart = squared > noise
    if kind == "squared":
        return torch.where(apart, squared, 0)
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


class MatrixSide:
    """The pairs of ``mask`` [N, M] with their values [N, M]; the methods are those of ``Side``, where they are
    described."""

    def __init__(self, values: Tensor, mask: Tensor, tiled: Callable[[], Any]) -> None:
        self.values, self.mask = values, mask
        self.tiled = tiled  # the Side of the same pairs, for what would need more than the matrix

    def _total(self, cost: Tensor) -> Tensor:
        return torch.where(self.mask, cost, 0).sum(1)

    def _keys(self, scale: float) -> Tensor:
        """scale * v without gradient, -inf at pairs that do not count; one more column, so that none is empty."""
        keys = (scale * self.values.detach()).masked_fill(~self.mask, -math.inf)
        return torch.cat([keys, keys.new_full((len(keys), 1), -math.inf)], 1)

    def sum(self, fn: Elementwise, *params: Tensor, slope: Elementwise | None = None) -> Tensor:
        beside = [t[:, None] for t in params]
        value = fn(self.values, *beside)
        return self._total(value if slope is None else with_slope(value, self.values, slope, *beside))

    def weighted_sum(self, weight: Elementwise) -> Tensor:
        return self._total(weight(self.values.detach()) * self.values)

    def hinge_sum(
        self, threshold: Tensor | float, *, above: bool, squared: bool = False
    ) -> tuple[Tensor, Tensor]:
        t = threshold[:, None] if isinstance(threshold, Tensor) and threshold.ndim else threshold
        hinge = torch.where(self.mask, self.values - t if above else t - self.values, 0).relu()
        count = (hinge.detach() > 0).sum(1).to(hinge.dtype)
        return (hinge.square() if squared else hinge).sum(1), count

    def softplus_sum(self, scale: float, shift: Tensor | float) -> Tensor:
        t = shift[:, None] if isinstance(shift, Tensor) and shift.ndim else shift
        return self._total(torch.nn.functional.softplus(scale * (self.values - t), threshold=40.0))

    def logsumexp(
        self,
        scale: float = 1.0,
        *,
        beyond: Tensor | None = None,
        fn: Elementwise | None = None,
        params: tuple[Tensor, ...] = (),
        slope: Elementwise | None = None,
    ) -> Tensor:
        e = fn(self.values, *(t[:, None] for t in params)) if fn is not None else scale * self.values
        if slope is not None:
            e = with_slope(e, self.values, slope)
        mask = self.mask
        if beyond is not None:
            mask = mask & (e > (scale * beyond)[:, None])
        # A column of zeros stands in for rows without pairs, so that their gradient is 0 and not NaN.
        empty = torch.where(mask.any(1), -math.inf, 0.0).to(e.dtype)
        value = torch.cat([torch.where(mask, e, -math.inf), empty[:, None]], 1).logsumexp(1)
        return torch.where(empty < 0, value, -math.inf)

    def logsumexp_and_hardest(self, scale: float, *, beyond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.logsumexp(scale, beyond=beyond), self._keys(scale).amax(1) / scale

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
        if len(threshold) * self.values.shape[1] > TRIPLETS:
            tiled = self.tiled()
            return tiled.hinge_over_positives(
                positives, threshold, scale=scale, start=start, stop=stop, soft=soft
            )
        near = (scale * self.values)[positives.anchor]  # [P, M]
        excess = near - threshold[:, None]
        counted = self.mask[positives.anchor]
        if start is not None:
            counted = counted & (near > start[:, None])
        elif not soft:
            counted = counted & (excess > 0)
        if stop is not None:
            counted = counted & (near < stop[:, None])
        cost = torch.nn.functional.softplus(excess, threshold=40.0) if soft else excess
        each = counted.sum(1).to(near.dtype)
        total = positives.total(torch.where(counted, cost, 0).sum(1))
        return total, positives.total(each), positives.padded(each, 0.0)

    def max(self) -> Tensor:
        return self._keys(1.0).amax(1)

    def min(self) -> Tensor:
        return -self._keys(-1.0).amax(1)

    def argmax(self, scale: float = 1.0) -> Tensor:
        value, ref = self._keys(scale).max(1)
        return torch.where(value > -math.inf, ref, -1)

    def argmax_below(self, bounds: Tensor, scale: float = 1.0, *, or_smallest: bool = False) -> Tensor:
        if bounds.numel() * self.values.shape[1] > TRIPLETS:
            return self.tiled().argmax_below(bounds, scale, or_smallest=or_smallest)
        keys = self._keys(scale)[:, None, :]  # [N, 1, M + 1]
        value, ref = torch.where(keys < bounds[:, :, None], keys, -math.inf).max(2)
        ref = torch.where(value > -math.inf, ref, -1)
        if or_smallest:
            ref = torch.where((ref < 0) & (bounds > -BIG), self.argmax(-scale)[:, None], ref)
        return ref

    def topk(self, k: int, scale: float = 1.0) -> Tensor:
        return self.tiled().topk(k, scale)

    def sample(self, log_weight: Elementwise, draws: int, generator: torch.Generator | None = None) -> Tensor:
        return self.tiled().sample(log_weight, draws, generator)


def with_slope(value: Tensor, at: Tensor, slope: Elementwise, *params: Tensor) -> Tensor:
    """``value`` with the derivative ``slope(at, *params)`` with respect to ``at``, whatever its own."""
    at_now = at.detach()
    return value.detach() + slope(at_now, *params).detach() * (at - at_now)

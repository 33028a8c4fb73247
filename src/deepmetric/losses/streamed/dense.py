"""The same reductions over one full matrix in plain torch: for small batches, where launching operations is all
the cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    product = _Gram.apply(x) if refs is x else x @ refs.T
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
        """scale * v without gradient, -inf at pairs that do not count; never without a column."""
        values = self.values.detach()
        if not values.shape[1]:
            return values.new_full((len(values), 1), -math.inf)
        return torch.where(self.mask, values * scale if scale != 1 else values, -math.inf)

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
        beyond = self.values - t
        # Torch's own derivative of a product: a Function of ours takes three times as long to call.
        ahead = beyond.detach()
        active = (ahead.clamp_min(0) if above else ahead.clamp_max(0)).mul_(self.mask).sign_()
        hinge, count = beyond * active, active.sum(1)
        return (hinge.square() if squared else hinge).sum(1), count if above else -count

    def softplus_sum(self, scale: float, shift: Tensor | float) -> Tensor:
        t = shift[:, None] if isinstance(shift, Tensor) and shift.ndim else shift
        return self._total(torch.nn.functional.softplus(scale * (self.values - t), threshold=40.0))

    def softplus_sum_beyond(
        self, scale: float, shift: Tensor | float, beyond: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys = self._keys(scale)
        kept = (keys > (scale * beyond.detach())[:, None])[:, : self.values.shape[1]]
        side = MatrixSide(self.values, kept, self.tiled)
        return side.softplus_sum(scale, shift), kept.sum(1).to(keys.dtype), keys.amax(1) / scale

    def hinge_sum_and_hardest(self, threshold: Tensor, *, above: bool) -> tuple[Tensor, Tensor, Tensor]:
        return *self.hinge_sum(threshold, above=above), self.max() if above else self.min()

    def exponential_hinge(self, sharpness: float, radius: float, *, above: bool) -> tuple[Tensor, Tensor]:
        hinge = self.values - radius if above else radius - self.values
        inside = hinge > 0 if above else (hinge > 0) & (self.values > 0)
        weight = torch.where(inside, (sharpness * hinge).exp(), 0)
        return self._total(weight * hinge), self._total(weight)

    def logsumexp(
        self,
        scale: float = 1.0,
        *,
        beyond: Tensor | None = None,
        fn: Elementwise | None = None,
        params: tuple[Tensor, ...] = (),
        slope: Elementwise | None = None,
    ) -> Tensor:
        if fn is None:
            return self._logsumexp(scale, beyond)[0]
        e = fn(self.values, *(t[:, None] for t in params))
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
        value, top = self._logsumexp(scale, beyond)
        return value, top / scale

    def _logsumexp(self, scale: float, beyond: Tensor | None) -> tuple[Tensor, Tensor]:
        """The log-sum-exp beyond a value, and the largest exponent of all."""
        keys = self._keys(scale)
        top = keys.amax(1)
        if beyond is not None:
            keys = torch.where(keys > (scale * beyond.detach())[:, None], keys, -math.inf)
        shift = torch.where(top > -math.inf, top, 0)
        weights = torch.exp(keys - shift[:, None])
        total = weights.sum(1)  # 0 over nothing, else at least 1: what is beyond anything includes the top
        weights.mul_((scale / total.clamp_min(1))[:, None])
        value = _WithSlopes.apply(total.log() + shift, self.values, weights[:, : self.values.shape[1]])
        return value, top

    def hinge_over_positives(
        self,
        positives: PairList,
        threshold: Tensor,
        *,
        scale: float = 1.0,
        start: Tensor | None = None,
        stop: Tensor | None = None,
        soft: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if len(threshold) * self.values.shape[1] > TRIPLETS:
            tiled = self.tiled()
            return tiled.hinge_over_positives(
                positives, threshold, scale=scale, start=start, stop=stop, soft=soft
            )
        values, mask = scale * self.values.detach(), self.mask
        anchor, t = positives.anchor, threshold.detach()[:, None]
        near = values.index_select(0, anchor)  # [P, M]
        cost = near - t
        counted = mask.index_select(0, anchor)
        if start is not None:
            counted &= near > start.detach()[:, None]
        elif not soft:
            counted &= cost > 0
        if stop is not None:
            counted &= near < stop.detach()[:, None]
        slope = counted.to(near.dtype)
        each = slope.sum(1)
        if soft:
            slope = torch.sigmoid(cost).mul_(slope)
            cost = torch.nn.functional.softplus(cost, threshold=40.0)
        value = positives.total(torch.where(counted, cost, 0).sum(1))
        by_value = torch.zeros_like(values).index_add_(0, anchor, slope, alpha=scale)
        total = _OverPositives.apply(value, self.values, by_value, threshold, slope.sum(1), anchor)
        return total, positives.total(each)

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

    def sample(
        self,
        log_weight: Elementwise,
        draws: int,
        generator: torch.Generator | None = None,
        *,
        kind: Kind | None = None,
    ) -> Tensor:
        return self.tiled().sample(log_weight, draws, generator, kind=kind)


class _Gram(torch.autograd.Function):
    """x xᵀ with one product in backward in place of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return (grad + grad.T) @ x


class _WithSlopes(torch.autograd.Function):
    """``value`` [N], whose slopes for ``values`` [N, M] are known already: one operation in place of a graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, values: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return None, grad[:, None] * slope, None


class _OverPositives(torch.autograd.Function):
    """``value`` [N] with its slopes for ``values`` [N, M], and for thresholds [P] beside pairs of ``anchor``."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        values: Tensor,
        slope: Tensor,
        threshold: Tensor,
        fall: Tensor,
        anchor: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(slope, fall, anchor)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slope, fall, anchor = ctx.saved_tensors
        return None, grad[:, None] * slope, None, -grad.index_select(0, anchor) * fall, None, None


def with_slope(value: Tensor, at: Tensor, slope: Elementwise, *params: Tensor) -> Tensor:
    """``value`` with the derivative ``slope(at, *params)`` with respect to ``at``, whatever its own."""
    at_now = at.detach()
    return value.detach() + slope(at_now, *params).detach() * (at - at_now)

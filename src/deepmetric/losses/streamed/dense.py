"""The same reductions over one full matrix in plain torch: for small batches, where launching operations is all
the cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepmetric.losses.streamed.gradients import first_order
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
    product = _Gram.apply(x) if refs is x else _Product.apply(x, refs)
    if unit or kind == "dot":
        return from_cosines(product, kind)
    norms = x.square().sum(1)[:, None]
    squared = norms + refs.square().sum(1) - 2 * product
    apart = squared > (16 * torch.finfo(x.dtype).eps * norms).detach()
    if kind == "squared":
        return torch.where(apart, squared, 0)
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def from_cosines(product: Tensor, kind: Kind) -> Tensor:
    """The same from the products of rows of unit length; of any rows for dot products."""
    if kind == "dot":
        return product
    squared, noise = 2 - 2 * product, 16 * torch.finfo(product.dtype).eps
    if kind == "squared":
        return torch.threshold(squared, noise, 0.0)
    # Two thresholds, as the derivative of a root is infinite at 0.
    return torch.threshold(torch.threshold(squared, noise, noise / 4).sqrt(), 0.75 * math.sqrt(noise), 0.0)


class MatrixSide:
    """The pairs of ``mask`` [N, M] with their values [N, M]; the methods are those of ``Side``, where they are
    described.

    To call an operation takes as long here as what it does, so the fewest are the fastest.
    """

    def __init__(self, values: Tensor, mask: Tensor, tiled: Callable[[], Any]) -> None:
        self.values, self.mask = values, mask
        self.tiled = tiled  # the Side of the same pairs, for what would need more than the matrix

    def _total(self, cost: Tensor) -> Tensor:
        return torch.where(self.mask, cost, 0).sum(1)

    def _keys(self, scale: float, values: Tensor | None = None, *, hidden: float = -math.inf) -> Tensor:
        """scale * v without gradient, ``hidden`` at pairs that do not count; never without a column."""
        values = (self.values if values is None else values).detach()
        if not values.shape[1]:
            return values.new_full((len(values), 1), hidden)
        return torch.where(self.mask, values * scale if scale != 1 else values, hidden)

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
        # Finite, as 0 times infinity is NaN: the extreme of no pairs is a bound too.
        t = t.clamp(-BIG, BIG) if isinstance(t, Tensor) else min(max(t, -BIG), BIG)
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
        kept = (keys > scale * beyond.detach()[:, None])[:, : self.values.shape[1]]
        side = MatrixSide(self.values, kept, self.tiled)
        return side.softplus_sum(scale, shift), kept.sum(1).to(keys.dtype), keys.amax(1) / scale

    def hinge_sum_and_hardest(self, threshold: Tensor, *, above: bool) -> tuple[Tensor, Tensor, Tensor]:
        return *self.hinge_sum(threshold, above=above), self.max() if above else self.min()

    def exponential_hinge(self, sharpness: float, radius: float, *, above: bool) -> tuple[Tensor, Tensor]:
        hinge = self.values - radius if above else radius - self.values
        inside = self.mask & (hinge > 0)
        if not above:
            inside &= self.values > 0
        # No exponential of other pairs: an infinite one would have a gradient of NaN.
        hinge = torch.where(inside, hinge, 0)
        weight = (sharpness * hinge).exp() * inside
        return (weight * hinge).sum(1), weight.sum(1)

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
            return self._logsumexp(self.values, scale, beyond)[0]
        exponents = fn(self.values, *(t[:, None] for t in params))
        if slope is not None:
            exponents = with_slope(exponents, self.values, slope)
        return self._logsumexp(exponents, 1.0, None if beyond is None else scale * beyond)[0]

    def logsumexp_and_hardest(self, scale: float, *, beyond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._logsumexp(self.values, scale, beyond)

    def _logsumexp(self, values: Tensor, scale: float, beyond: Tensor | None) -> tuple[Tensor, Tensor]:
        """log Σ exp(scale * v) of the values beyond one, and the value of the largest scale * v of all."""
        keys = self._keys(scale, values, hidden=-BIG)
        if values is not self.values:
            keys.clamp_min_(-BIG)  # a function may be -inf at all pairs, whose softmax is NaN
        top = hardest = keys.amax(1)
        if beyond is not None:
            away = keys - (scale * beyond.detach())[:, None]
            keys = keys + torch.threshold_(away, 0.0, -BIG).clamp_max_(0)  # without the branches of `where`
            top = keys.amax(1)
        shares = keys.softmax(1)
        some = top > -0.5 * BIG
        value = top - shares.amax(1).log_()  # the share of the top is exp(top - log Σ exp)
        value = _WithSlopes.apply(
            torch.where(some, value, -math.inf), values, shares[:, : values.shape[1]], some, scale
        )
        return value, torch.threshold_(hardest, -0.5 * BIG, -math.inf).div_(scale)

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
        values, anchor = scale * self.values.detach(), positives.anchor
        near = values.index_select(0, anchor)  # [P, M]
        cost = near - threshold.detach()[:, None]
        slope = self.mask.index_select(0, anchor).to(near.dtype)
        if start is not None:
            slope.mul_(_above(near, start.detach()[:, None]))
        elif not soft:
            slope.mul_(cost.clamp_min_(0).sign())
        if stop is not None:
            slope.mul_(_above(stop.detach()[:, None], near))
        each = slope.sum(1)
        if soft:
            slope, counted = torch.sigmoid(cost).mul_(slope), slope
            cost = torch.nn.functional.softplus(cost, threshold=40.0).mul_(counted)
        else:
            cost.mul_(slope)
        value = positives.total(cost.sum(1))
        by_value = torch.zeros_like(values).index_add_(0, anchor, slope, alpha=scale)
        total = _OverPositives.apply(value, self.values, by_value, threshold, slope.sum(1), anchor)
        return total, positives.total(each)

    def max(self) -> Tensor:
        return self._keys(1.0).amax(1)

    def min(self) -> Tensor:
        return self._keys(1.0, hidden=math.inf).amin(1)

    def argmax(self, scale: float = 1.0) -> Tensor:
        value, ref = self._keys(scale).max(1)
        return torch.where(value > -math.inf, ref, -1)

    def argmax_below(self, bounds: Tensor, scale: float = 1.0, *, or_smallest: bool = False) -> Tensor:
        if bounds.numel() * self.values.shape[1] > TRIPLETS:
            return self.tiled().argmax_below(bounds, scale, or_smallest=or_smallest)
        keys = self._keys(scale, hidden=-BIG)[:, None, :]  # [N, 1, M]
        below = _above(bounds[:, :, None], keys)
        value, ref = below.sub_(1).mul_(BIG).add_(keys).max(2)
        ref = torch.where(value > -0.5 * BIG, ref, -1)
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


def _above(values: Tensor, bounds: Tensor) -> Tensor:
    """1 where a value is above its bound, else 0: what ``(values > bounds).to(values.dtype)`` is in twice the time."""
    return (values - bounds).clamp_min_(0).sign_()


class _Product(torch.autograd.Function):
    """x yᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x @ y.T

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, y = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad
        return grad @ y if need_x else None, grad.T @ x if need_y else None


class _Gram(torch.autograd.Function):
    """x xᵀ with one product in backward in place of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.T

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return (grad + grad.T) @ x


class _WithSlopes(torch.autograd.Function):
    """``value`` [N], whose slopes for ``values`` [N, M] are known already: ``scale`` times ``slope`` [N, M] in ``some``
    rows [N], 0 in others. One operation in place of a graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, values: Tensor, slope: Tensor, some: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(slope, some)
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slope, some = ctx.saved_tensors
        grad = torch.where(some, grad * ctx.scale, 0)
        return None, grad[:, None] * slope, None, None, None


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
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slope, fall, anchor = ctx.saved_tensors
        return None, grad[:, None] * slope, None, -grad.index_select(0, anchor) * fall, None, None


def with_slope(value: Tensor, at: Tensor, slope: Elementwise, *params: Tensor) -> Tensor:
    """``value`` with the derivative ``slope(at, *params)`` with respect to ``at``, whatever its own."""
    at_now = at.detach()
    return value.detach() + slope(at_now, *params).detach() * (at - at_now)

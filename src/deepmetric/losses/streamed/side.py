"""Reductions that stream over tiles: what a loss asks of the negatives, or of positives too many to list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepmetric.losses.streamed import choose, steps, sums
from deepmetric.losses.streamed.listed import PairList
from deepmetric.losses.streamed.logsumexp import LogSumExp
from deepmetric.losses.streamed.metric import Kind, Metric
from deepmetric.losses.streamed.operator import Job, reduce
from deepmetric.losses.streamed.tiles import BIG, LOG2E, Group

if TYPE_CHECKING:
    from deepmetric.losses.streamed.comparison import Comparison


class Side:
    """The negatives, or the positives in blocks: reductions that stream over tiles."""

    def __init__(self, pairs: Comparison, groups: list[Group], rows: Tensor | None = None) -> None:
        self.pairs, self.groups = pairs, groups
        self.rows = rows  # [N] the anchor of each row of the groups; None: as they come

    def logsumexp(
        self,
        scale: float = 1.0,
        *,
        beyond: Tensor | None = None,
        fn: sums.Elementwise | None = None,
        params: tuple[Tensor, ...] = (),
        slope: sums.Elementwise | None = None,
    ) -> Tensor:
        """log Σ exp(scale * v), or log Σ exp(fn(v, *params)), [N]; -inf over nothing, with zero gradient.

        ``beyond`` [N] (without gradient): only pairs with scale * v > scale * beyond. ``slope``: the derivative
        of ``fn`` as a function of v, where it is not to be that of ``fn``, or is cheaper (then without params).
        """
        return self._logsumexp(scale, beyond, fn, params, hardest=False, slope=slope)[0]

    def logsumexp_and_hardest(self, scale: float, *, beyond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`logsumexp`, and in the same pass the value of the largest scale * v of all pairs (not only
        those beyond), without gradient; infinite of that sign over nothing."""
        value, hardest = self._logsumexp(scale, beyond, None, (), hardest=True)
        return value, _finite_or_inf(hardest) / (scale * LOG2E)

    def _logsumexp(
        self,
        scale: float,
        beyond: Tensor | None,
        fn: sums.Elementwise | None,
        params: tuple[Tensor, ...],
        hardest: bool,
        slope: sums.Elementwise | None = None,
    ) -> list[Tensor]:
        bounded = self.pairs.metric(scale).in_range(self.pairs.anchors.dtype)
        scale = 1.0 if fn is not None else scale * LOG2E
        mined = beyond is not None
        if beyond is not None:
            params = ((beyond.detach() * scale).clamp(-0.1 * BIG, 0.1 * BIG),)
        return self._reduce(
            LogSumExp(bounded=bounded, mined=mined, hardest=hardest, fn=fn, slope=slope),
            self.pairs.metric(scale),
            params,
        )

    def sum(self, fn: sums.Elementwise, *params: Tensor, slope: sums.Elementwise | None = None) -> Tensor:
        """Σ fn(v, *params) [N] of any elementwise function; params [N].

        ``slope``: the derivative of ``fn`` by v as a function of the same arguments, where it is not to be that
        of ``fn``, or is cheaper; params are then constants.
        """
        return self._reduce(sums.ElementwiseSum(fn, slope), self.pairs.metric(), params)[0]

    def weighted_sum(self, weight: sums.Elementwise) -> Tensor:
        """Σ weight(v) v [N] with the weights as constants: a loss given by the weights of its pairs."""
        return self._reduce(sums.WeightedSum(weight), self.pairs.metric(), [])[0]

    def hinge_sum(
        self, threshold: Tensor | float, *, above: bool, squared: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Σ [v - t]₊ (``above``) or Σ [t - v]₊, or of their squares, [N], and how many are positive."""
        reduction = sums.HingeSum(above=above, squared=squared)
        value, count = self._reduce(reduction, self.pairs.metric(), [self._bound(threshold)])
        return value, count

    def hinge_sum_and_hardest(self, threshold: Tensor, *, above: bool) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`hinge_sum`, and in the same pass the largest value (``above``) or the smallest, whether beyond the
        threshold or not, without gradient; infinite of that sign over nothing."""
        reduction = sums.HingeSum(above=above, hardest=True)
        value, count, hardest = self._reduce(reduction, self.pairs.metric(), [self._bound(threshold)])
        sign = 1 if above else -1
        return value, count, sign * _finite_or_inf(sign * hardest)

    def softplus_sum(self, scale: float, shift: Tensor | float) -> Tensor:
        """Σ log(1 + exp(scale (v - shift))) [N]."""
        return self._reduce(sums.SoftplusSum(), self.pairs.metric(scale), [scale * self._param(shift)])[0]

    def softplus_sum_beyond(
        self, scale: float, shift: Tensor | float, beyond: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`softplus_sum` of the pairs with scale * v > scale * beyond [N], how many these are, and the value of
        the largest scale * v of all pairs, without gradient; infinite of that sign over nothing."""
        bound = (beyond.detach() * scale).clamp(-0.1 * BIG, 0.1 * BIG)
        value, count, hardest = self._reduce(
            sums.SoftplusSum(mined=True), self.pairs.metric(scale), [scale * self._param(shift), bound]
        )
        return value, count, _finite_or_inf(hardest) / scale

    def exponential_hinge(self, sharpness: float, radius: float, *, above: bool) -> tuple[Tensor, Tensor]:
        """Σ w h and Σ w [N] of the hinges h = v - radius (``above``) or radius - v where above 0, with w =
        exp(sharpness h) and gradients for both; below the radius values of 0 are left out."""
        reduction = sums.ExponentialHinge(sharpness, radius, above=above)
        weighted, total = self._reduce(reduction, self.pairs.metric(), [])
        return weighted, total

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
        """Σ [scale * v - t]₊, or of its softplus, over all pairs of a positive and a negative of the anchor.

        ``threshold``, ``start``, ``stop``: [P], beside the pairs of ``positives``, in units of scale * v; only
        negatives with start < scale * v < stop count (without them: all with a positive hinge, or all). Only
        ``threshold`` has a gradient. Returns the sum [N] and how many counted [N].
        """
        t = positives.padded(threshold, BIG)
        used = t.detach() < 0.5 * BIG
        if start is not None:
            begin = positives.padded(start.detach(), BIG)
        else:
            begin = torch.where(used, -BIG, BIG).to(t.dtype) if soft else t.detach()
        end = torch.full_like(begin, BIG) if stop is None else positives.padded(stop.detach(), -BIG)
        metric = self.pairs.metric(scale)
        intervals = start is not None or stop is not None
        if soft:
            reduction: Any = steps.SoftSteps(intervals=intervals, bound=metric.bound())
        else:
            reduction = steps.HingeSteps(stops=stop is not None)
        value, count = self._by_slots(used)._reduce(reduction, metric, [t, begin, end])
        if soft and not intervals:
            count = (used.sum(1) * self.pairs.negative_count).to(value.dtype)
        return value, count

    def _by_slots(self, used: Tensor) -> Side:
        """The same negatives, anchors with many positives first: then slot k of [N, K] is used by the first
        rows alone, and a tile's pass for it is over these."""
        if self.rows is not None:
            return self
        return self.pairs.negative_tiles(used.sum(1).argsort(descending=True, stable=True))

    def max(self) -> Tensor:
        """The largest value of each anchor [N] without gradient, -inf over nothing."""
        return _finite_or_inf(self._reduce(choose.Extreme(), self.pairs.metric(), [])[0])

    def min(self) -> Tensor:
        """The smallest value of each anchor [N] without gradient, inf over nothing."""
        return -_finite_or_inf(self._reduce(choose.Extreme(), self.pairs.metric(-1.0), [])[0])

    def argmax(self, scale: float = 1.0) -> Tensor:
        """The reference of the largest scale * v of each anchor [N] int64, -1 for none; over several processes
        it is with one of them, -1 with the others. So with all that choose references."""
        return self._refs(self._reduce(choose.Largest(), self.pairs.metric(scale), [])[1])

    def argmax_below(self, bounds: Tensor, scale: float = 1.0, *, or_smallest: bool = False) -> Tensor:
        """For each bound [N, K] the reference of the largest scale * v below it, [N, K] int64, -1 for none.

        ``or_smallest``: where none is below, that of the anchor's smallest scale * v (a bound of -BIG, that of
        a slot without a positive, stays without).
        """
        side = self._by_slots(bounds > -BIG)
        value, rank = side._reduce(choose.Largest(below=True), self.pairs.metric(scale), [bounds])
        ref = self._refs(rank)
        if or_smallest:
            missing = (value <= -BIG) & (bounds > -BIG)
            if missing.any():
                ref = torch.where(missing, self.argmax(-scale)[:, None], ref)
        return ref

    def topk(self, k: int, scale: float = 1.0) -> Tensor:
        """The references of the k largest scale * v of each anchor [N, k], -1 where there are fewer."""
        return self._refs(self._reduce(choose.TopK(k), self.pairs.metric(scale), [])[1])

    def sample(
        self,
        log_weight: sums.Elementwise,
        draws: int,
        generator: torch.Generator | None = None,
        *,
        kind: Kind | None = None,
    ) -> Tensor:
        """References [N, draws] drawn with replacement, weighted by exp(log_weight(v)); -1 without weights. ``kind``:
        of the values that ``log_weight`` takes, if not that of the comparison."""
        reduction = choose.Sample(log_weight, draws, generator)
        metric = self.pairs.metric()._replace(kind=kind or self.pairs.kind)
        return self._refs(self._reduce(reduction, metric, [])[0])

    def _refs(self, ranks: Tensor) -> Tensor:
        order = self.groups[0].order if self.groups else None
        return ranks if order is None else torch.where(ranks >= 0, order[ranks.clamp_min(0)], -1)

    def _param(self, t: Tensor | float) -> Tensor:
        if isinstance(t, Tensor) and t.ndim:
            return t
        anchors = self.pairs.anchors
        # Not through as_tensor, which makes a float32 of a Python float.
        return (t.to(anchors) if isinstance(t, Tensor) else anchors.new_tensor(t)).expand(len(anchors))

    def _bound(self, t: Tensor | float) -> Tensor:
        """Finite, and short of where hidden pairs are: infinite is the extreme of no pairs."""
        return self._param(t).clamp(-0.1 * BIG, 0.1 * BIG)

    def _reduce(self, reduction: Any, metric: Metric, params: Sequence[Tensor]) -> list[Tensor]:
        pairs, anchors = self.pairs, self.pairs.anchors
        params = [p.to(anchors.dtype) for p in params]
        if self.rows is not None:
            anchors, params = anchors[self.rows], [p[self.rows] for p in params]
        job = Job(reduction, metric, self.groups, pairs.normalize_refs, pairs.processes)
        out = reduce(job, anchors, pairs.refs, params)
        if self.rows is not None:
            back = inverse(self.rows)
            out = [o[back] for o in out]
        return out


def inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(inverse), device=inverse.device)
    return inverse


def _finite_or_inf(value: Tensor) -> Tensor:
    """-BIG, what an empty maximum leaves, as -inf."""
    return torch.where(value > -0.05 * BIG, value, -math.inf)

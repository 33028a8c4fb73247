"""Reductions over a flat list of pairs in plain torch: the positives, where they are few."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deepmetric.losses.streamed.dense import with_slope
from deepmetric.losses.streamed.gradients import first_order
from deepmetric.losses.streamed.metric import Metric
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.sums import Elementwise

# Rows gathered at a time: 2 x 4 MB in float32.
CHUNK = 2**20


class PairList:
    """Pairs (anchor, ref) [P] with their values [P], and reductions to the N anchors."""

    def __init__(
        self, anchor: Tensor, ref: Tensor, values: Tensor, anchors: int, processes: Processes | None = None
    ) -> None:
        self.anchor, self.ref, self.values, self.anchors = anchor, ref, values, anchors
        self.processes = processes

    def at(self, per_anchor: Tensor) -> Tensor:
        """A value of each anchor [N] beside each of its pairs [P]."""
        return per_anchor[self.anchor]

    def _beside(self, t: Tensor | float) -> Tensor | float:
        return self.at(t) if isinstance(t, Tensor) and t.ndim else t

    def everywhere(self, per_pair: Tensor) -> Tensor:
        """[P, ...] of this process's pairs -> of the pairs of all processes, with gradient."""
        return self.processes.gather(per_pair) if self.processes is not None else per_pair

    def total(self, per_pair: Tensor) -> Tensor:
        """Sums [P] -> [N]."""
        out = per_pair.new_zeros(self.anchors).index_add(0, self.anchor, per_pair)
        return self.processes.sum(out) if self.processes is not None else out

    def sum(self, fn: Elementwise, *params: Tensor, slope: Elementwise | None = None) -> Tensor:
        beside = [self.at(t) for t in params]
        value = fn(self.values, *beside)
        return self.total(value if slope is None else with_slope(value, self.values, slope, *beside))

    def weighted_sum(self, weight: Elementwise) -> Tensor:
        return self.total(weight(self.values.detach()) * self.values)

    def hinge_sum(
        self, threshold: Tensor | float, *, above: bool, squared: bool = False
    ) -> tuple[Tensor, Tensor]:
        t = self._beside(threshold)
        hinge = (self.values - t if above else t - self.values).relu()
        count = self.total((hinge.detach() > 0).to(hinge.dtype))
        return self.total(hinge.square() if squared else hinge), count

    def softplus_sum(self, scale: float, shift: Tensor | float) -> Tensor:
        t = self._beside(shift)
        return self.total(torch.nn.functional.softplus(scale * (self.values - t), threshold=40.0))

    def softplus_sum_beyond(
        self, scale: float, shift: Tensor | float, beyond: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        key = scale * self.values
        kept = (key.detach() > self.at(scale * beyond)).to(key.dtype)
        t = self._beside(shift)
        cost = torch.nn.functional.softplus(key - scale * t, threshold=40.0)
        return self.total(cost * kept), self.total(kept), self._amax(key.detach()) / scale

    def exponential_hinge(self, sharpness: float, radius: float, *, above: bool) -> tuple[Tensor, Tensor]:
        hinge = self.values - radius if above else radius - self.values
        inside = hinge > 0 if above else (hinge > 0) & (self.values > 0)
        weight = torch.where(inside, (sharpness * hinge).exp(), 0)
        return self.total(weight * hinge), self.total(weight)

    def logsumexp(
        self,
        scale: float = 1.0,
        *,
        beyond: Tensor | None = None,
        fn: Elementwise | None = None,
        params: tuple[Tensor, ...] = (),
        slope: Elementwise | None = None,
    ) -> Tensor:
        exponent = fn(self.values, *(self.at(t) for t in params)) if fn is not None else scale * self.values
        if slope is not None:
            exponent = with_slope(exponent, self.values, slope)
        if beyond is not None:
            exponent = torch.where(exponent > self.at(scale * beyond), exponent, -math.inf)
        shift = self._amax(exponent.detach())
        shift = torch.where(shift.isfinite(), shift, 0)
        total = self.total(torch.exp(exponent - self.at(shift)))
        some = total > 0
        return torch.where(some, torch.where(some, total, 1).log() + shift, -math.inf)

    def max(self) -> Tensor:
        """The largest value of each anchor without gradient, -inf over nothing."""
        return self._amax(self.values.detach())

    def min(self) -> Tensor:
        return -self._amax(-self.values.detach())

    def _amax(self, per_pair: Tensor) -> Tensor:
        out = per_pair.new_full((self.anchors,), -math.inf).scatter_reduce_(0, self.anchor, per_pair, "amax")
        return self.processes.max_(out) if self.processes is not None else out

    def argmax(self, scale: float = 1.0) -> Tensor:
        """The reference of the largest scale * v of each anchor [N] int64, -1 for none; over several processes
        it is with one of them, -1 with the others."""
        value = scale * self.values.detach()
        best = value.new_full((self.anchors,), -math.inf).scatter_reduce_(0, self.anchor, value, "amax")
        at_best = (value == self.at(best)).nonzero()[:, 0]
        ref = self.ref.new_full((self.anchors,), -1)
        ref.scatter_reduce_(0, self.anchor[at_best], self.ref[at_best], "amax")
        if self.processes is not None:
            self.processes.keep_owned(best, ref)
        return ref

    def padded(self, per_pair: Tensor, fill: float) -> Tensor:
        """[P] -> [N, K], K the largest number of pairs an anchor has but at least 1, with gradient.

        Over several processes the pairs of all of them.
        """
        per_pair = self.everywhere(per_pair)
        order, anchor, slot, width = self._slots
        out = per_pair.new_full((self.anchors, width), fill)
        return out.index_put((anchor, slot), per_pair[order])

    @cached_property
    def _slots(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """The pairs of all processes in the order of their anchors: which, the anchor, which of its pairs; and
        the most pairs of an anchor."""
        anchor = self.everywhere(self.anchor)
        order = anchor.argsort(stable=True)
        anchor = anchor[order]
        counts = torch.bincount(anchor, minlength=self.anchors)
        slot = torch.arange(len(anchor), device=anchor.device) - (counts.cumsum(0) - counts)[anchor]
        return order, anchor, slot, int(counts.max()) if len(anchor) else 1


def pair_values(
    anchors: Tensor, refs: Tensor, anchor: Tensor, ref: Tensor, metric: Metric, normalize_refs: bool
) -> Tensor:
    """Values [P] of the listed pairs, with gradient; no gathered rows are kept for it."""
    return _PairValues.apply(anchors, refs, anchor, ref, metric, normalize_refs)


class _PairValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, refs: Tensor, anchor: Tensor, ref: Tensor, metric: Metric, normalize: bool
    ) -> Tensor:
        ctx.metric, ctx.normalize = metric, normalize
        need_refs = ctx.needs_input_grad[1]
        with torch.autocast(device_type=anchors.device.type, enabled=False):
            parts = []
            for lo, hi in _chunks(len(anchor), anchors.shape[1]):
                y = _rows(refs, ref[lo:hi], anchors.dtype, normalize)
                parts.append(metric.of_pairs(anchors[anchor[lo:hi]], y))
        # A memory is overwritten before backward: what the anchors need of it is kept if that is small.
        small = not need_refs and len(anchor) * anchors.shape[1] <= 2 * CHUNK
        ctx.kept = _rows(refs, ref, anchors.dtype, normalize) if small else None
        ctx.save_for_backward(anchors, None if small else refs, anchor, ref)
        return torch.cat(parts) if parts else anchors.new_zeros(0)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        anchors, refs, anchor, ref = ctx.saved_tensors
        need_x, need_refs = ctx.needs_input_grad[:2]
        gx = torch.zeros_like(anchors) if need_x else None
        gy = torch.zeros(refs.shape, dtype=anchors.dtype, device=refs.device) if need_refs else None
        for lo, hi in _chunks(len(anchor), anchors.shape[1]):
            if ctx.kept is not None:
                y = ctx.kept[lo:hi]
            else:
                y = _rows(refs, ref[lo:hi], anchors.dtype, ctx.normalize)
            x = anchors[anchor[lo:hi]]
            wx, wy = ctx.metric.pair_gradients(x, y, grad[lo:hi])
            if gx is not None:
                gx.index_add_(0, anchor[lo:hi], wx)
            if gy is not None:
                gy.index_add_(0, ref[lo:hi], wy)
        return gx, gy.to(refs.dtype) if gy is not None else None, None, None, None, None


def _chunks(pairs: int, width: int) -> list[tuple[int, int]]:
    step = max(CHUNK // max(width, 1), 1)
    return [(lo, min(lo + step, pairs)) for lo in range(0, pairs, step)]


def _rows(refs: Tensor, index: Tensor, dtype: torch.dtype, normalize: bool) -> Tensor:
    rows = refs[index].to(dtype)
    if normalize:
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = rows / norms.add_(norms == 0)
    return rows

"""Sums over the pairs of an anchor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.softplus import sigmoid_, softplus_total
from deepmetric.losses.streamed.tiles import BIG, LOG2E, Hide

State = dict[str, Tensor]
Elementwise = Callable[..., Tensor]  # fn(values, *params) -> the same shape, in plain torch


class HingeSum:
    """Σ [v - t]₊ (``above``) or Σ [t - v]₊, or their squares; t is the one parameter. Second output: how many
    are positive, as floats; with ``hardest`` a third: the largest (smallest) of all values, +-BIG over nothing."""

    differentiable = True
    side_by_side = True
    preserves = True

    def __init__(self, *, above: bool, squared: bool = False, hardest: bool = False) -> None:
        self.above, self.squared, self.hardest = above, squared, hardest

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        state = {name: like.new_zeros(rows) for name in ("sum", "count", "slope0")}
        if self.hardest:
            state["hardest"] = like.new_full((rows,), -BIG)
        return state

    def _hinge(self, v: Tensor, t: Tensor, hide: Hide, out: Tensor) -> Tensor:
        hide(v, -BIG if self.above else BIG)
        beyond = torch.sub(v, t[:, None], out=out) if self.above else torch.sub(t[:, None], v, out=out)
        return beyond.clamp_min_(0)

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        hinge = self._hinge(v, params[0], hide, spare(0))
        if self.hardest:
            top = v.amax(1) if self.above else v.amin(1).neg_()
            torch.maximum(state["hardest"], top, out=state["hardest"])
        if not self.squared:
            state["sum"].add_(hinge.sum(1))
            hinge.sign_()
            state["count"].add_(hinge.sum(1))
            return hinge
        state["sum"].add_(torch.square(hinge, out=spare(1)).sum(1))
        state["slope0"].add_(hinge.sum(1))
        state["count"].add_(torch.sign(hinge, out=spare(1)).sum(1))
        return hinge

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        hinge = self._hinge(v, params[0], hide, spare(0))
        return hinge if self.squared else hinge.sign_()

    def combine(self, state: State, processes: Processes) -> None:
        if not self.squared:
            state["slope0"] = state["count"].clone()
        if self.hardest:
            processes.max_(state["hardest"])
        state["sum"] = processes.sum_(state["sum"])
        state["count"] = processes.sum_(state["count"].clone())
        state["combined"] = state["sum"]

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        sign = 1 if self.above else -1
        # dA/dt = -dA/dv, summed.
        slope = state["slope0"] if self.squared or "combined" in state else state["count"]
        state["slope0"] = -slope
        outputs = [state["sum"], state["count"].clone()]
        if self.hardest:
            outputs.append(sign * state["hardest"])
        return outputs, (2.0 if self.squared else 1.0) * sign


class SoftplusSum:
    """Σ log(1 + exp(v - t)) over scaled values; t is the first parameter.

    With ``mined`` the second is a threshold: only values above it are summed. Second output: how many are summed;
    third: the largest of all values, -BIG over nothing.
    """

    differentiable = True
    side_by_side = True

    def __init__(self, *, mined: bool = False) -> None:
        self.mined = mined

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        state = {name: like.new_zeros(rows) for name in ("sum", "slope0", "slope1", "count")}
        state["hardest"] = like.new_full((rows,), -BIG)
        return state

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        hide(v, -BIG)
        if self.mined:
            torch.maximum(state["hardest"], v.amax(1), out=state["hardest"])
            self._keep_above(v, params[1], spare(0))
            state["count"].add_(v.shape[1]).sub_(spare(0).sum(1))
        v.sub_(params[0][:, None])
        state["sum"].add_(softplus_total(v, spare(0), spare(1)))
        sigmoid_(v, spare(0))
        state["slope0"].sub_(v.sum(1))
        return v

    def _keep_above(self, v: Tensor, bound: Tensor, left_out: Tensor) -> None:
        torch.le(v, bound[:, None], out=left_out)
        v.add_(left_out, alpha=-BIG)

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        hide(v, -BIG)
        if self.mined:
            self._keep_above(v, params[1], spare(0))
        return v.sub_(params[0][:, None]).sigmoid_()

    def combine(self, state: State, processes: Processes) -> None:
        state["sum"] = processes.sum_(state["sum"])
        if self.mined:
            state["count"] = processes.sum_(state["count"])
            processes.max_(state["hardest"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        if not self.mined:
            return [state["sum"]], 1.0
        return [state["sum"], state["count"], state["hardest"]], 1.0


class ExponentialHinge:
    """Σ w h and Σ w over the hinges h = ±(v - radius) that are above 0, with w = exp(sharpness h).

    + for ``above``, else - and a value of 0 (a distance without a direction) is left out. Both outputs have
    gradients.
    """

    differentiable = True
    side_by_side = True
    preserves = True
    outputs = 2
    wanted = True

    def __init__(self, sharpness: float, radius: float, *, above: bool) -> None:
        self.sharpness, self.radius, self.sign = sharpness, radius, 1.0 if above else -1.0

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        return {name: like.new_zeros(rows) for name in ("weighted", "sum")}

    def _parts(self, v: Tensor, hide: Hide, spare) -> tuple[Tensor, Tensor]:
        """w and w h, 0 where h is not above 0."""
        hide(v, -self.sign * BIG)
        h = torch.sub(v, self.radius, out=spare(0))
        if self.sign < 0:
            h.neg_()
        w = torch.mul(h, self.sharpness * LOG2E, out=spare(1)).exp2_()
        w.mul_(torch.gt(h, 0, out=spare(2)))
        if self.sign < 0 and (v.is_cuda or bool((v.amin(1) <= 0).any())):
            w.mul_(torch.gt(v, 0, out=spare(2)))
        return w, h.mul_(w)

    def tile(
        self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int
    ) -> tuple[Tensor, ...] | None:
        w, weighted = self._parts(v, hide, spare)
        state["sum"].add_(w.sum(1))
        state["weighted"].add_(weighted.sum(1))
        return self._weights(w, weighted) if self.wanted else None

    def _weights(self, w: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
        return torch.add(w, weighted, alpha=self.sharpness, out=weighted), w

    def replay(
        self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare
    ) -> tuple[Tensor, Tensor]:
        return self._weights(*self._parts(v, hide, spare))

    def combine(self, state: State, processes: Processes) -> None:
        for name in ("weighted", "sum"):
            state[name] = processes.sum_(state[name])

    def finish(self, state: State) -> tuple[list[Tensor], tuple[float, float]]:
        return [state["weighted"], state["sum"]], (self.sign, self.sign * self.sharpness)


class ElementwiseSum:
    """Σ fn(v, *t) for any elementwise function in plain torch, differentiated tile by tile.

    Whatever ``fn`` detaches counts as a constant in the gradient.
    """

    differentiable = True
    side_by_side = True

    wanted = True  # whether anybody needs the weights

    def __init__(self, fn: Elementwise, slope: Elementwise | None = None) -> None:
        self.fn, self.slope = fn, slope

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        names = ["sum", *(f"slope{k}" for k in range(len(params)))]
        return {name: like.new_zeros(rows) for name in names}

    def tile(
        self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int
    ) -> Tensor | None:
        f, slopes = linearised(self.fn, v, params, self.slope)
        hide(f, 0.0)
        state["sum"].add_(f.sum(1))
        if not self.wanted:
            return None
        shown = spare(0).fill_(1)
        hide(shown, 0.0)
        by_value, *by_param = slopes(shown)
        for k, slope in enumerate(by_param):
            state[f"slope{k}"].add_(slope)
        return by_value

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        _, slopes = linearised(self.fn, v, params, self.slope)
        shown = spare(0).fill_(1)
        hide(shown, 0.0)
        return slopes(shown)[0]

    def combine(self, state: State, processes: Processes) -> None:
        state["sum"] = processes.sum_(state["sum"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [state["sum"]], 1.0


class WeightedSum:
    """Σ weight(v) v with the weights as constants, the surrogate of General Pair Weighting."""

    differentiable = True
    side_by_side = True

    def __init__(self, weight: Elementwise) -> None:
        self.weight = weight

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        return {"sum": like.new_zeros(rows)}

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        weight = self.replay(state, v, params, hide, spare)
        state["sum"].add_(v.mul_(weight).sum(1))
        return weight

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        weight = spare(0).copy_(self.weight(v))
        hide(weight, 0.0)
        return weight

    def combine(self, state: State, processes: Processes) -> None:
        state["sum"] = processes.sum_(state["sum"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [state["sum"]], 1.0


def linearised(fn: Elementwise, v: Tensor, params: Sequence[Tensor], slope: Elementwise | None):
    """fn(v, *t) as a tile of its own, and the map from an upstream tile to slopes for v and each t [n]."""
    if slope is not None:
        fixed = [t[:, None] for t in params]
        value, given = fn(v, *fixed), slope(v, *fixed)
        return value, lambda upstream: [upstream.mul_(given), *(torch.zeros_like(t) for t in params)]
    v = v.detach().requires_grad_()
    rows = [t.detach()[:, None].requires_grad_() for t in params]
    with torch.enable_grad():
        f = fn(v, *rows)

    def slopes(upstream: Tensor) -> list[Tensor]:
        if not f.requires_grad:
            return [torch.zeros_like(v), *(torch.zeros_like(t[:, 0]) for t in rows)]
        found = torch.autograd.grad(f, [v, *rows], upstream, allow_unused=True)
        every = [torch.zeros_like(a) if g is None else g for a, g in zip([v, *rows], found)]
        return [every[0], *(g[:, 0] for g in every[1:])]

    # A copy, so that what the graph of `fn` saved (its own output, for exp) is not overwritten.
    return f.detach().clone(), slopes

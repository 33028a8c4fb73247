"""Sums and log-sum-exps over the pairs of an anchor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.tiles import BIG, Hide

State = dict[str, Tensor]
Elementwise = Callable[..., Tensor]  # fn(values, *params) -> the same shape, in plain torch


class LogSumExp:
    """log Σ exp(v) over values (which arrive scaled), or log Σ exp(fn(v, t)); -inf over nothing.

    With ``bounded`` the exponents are known to be too small to overflow and no maximum is taken off; otherwise
    it runs along and rescales what was summed (as flash attention does). With ``mined`` the first parameter is
    a threshold on the scaled values: only values above it are summed. Second output: the largest value, mined
    or not, -BIG over nothing.
    """

    differentiable = True

    def __init__(
        self,
        *,
        bounded: bool,
        mined: bool = False,
        hardest: bool = False,
        fn: Elementwise | None = None,
        slope: Elementwise | None = None,
    ):
        self.running = fn is not None or not bounded
        self.mined, self.hardest, self.fn, self.slope = mined, hardest, fn, slope

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        state = {"sum": like.new_zeros(rows)}
        # Above what stands for minus infinity, so that exp(-BIG - shift) is 0 and not 1.
        state["shift"] = like.new_full((rows,), -0.1 * BIG if self.running else 0.0)
        if self.hardest:
            state["hardest"] = like.new_full((rows,), -BIG)
        for k in range(len(params)):
            state[f"slope{k}"] = like.new_zeros(rows)
        return state

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        slopes = None
        if self.fn is not None:
            v, slopes = _linearised(self.fn, v, params, self.slope)
        if self.hides_first:
            hide(v, -BIG)
        top = v.amax(1) if self.hardest or self.running else None
        if self.hardest and top is not None:
            torch.maximum(state["hardest"], top, out=state["hardest"])
        above = torch.gt(v, params[0][:, None], out=spare(0)) if self.mined else None
        if self.running and top is not None:
            shift = torch.maximum(state["shift"], top)
            rescale = torch.exp(state["shift"] - shift)
            state["sum"].mul_(rescale)
            for k in range(len(params)):
                state[f"slope{k}"].mul_(rescale)
            state["shift"], state["rescale"] = shift, rescale
            v.sub_(shift[:, None])
        self._exp(v, above, hide)
        state["sum"].add_(v.sum(1))
        return self._weights(v, slopes, state)

    @property
    def hides_first(self) -> bool:
        return self.hardest or self.running or self.mined

    def _exp(self, v: Tensor, above: Tensor | None, hide: Hide) -> None:
        # An exponential that underflows takes 20 times as long as another: they are cut off where they no
        # longer count. A few hidden ones in a tile are not felt.
        if self.running or (hide.many and self.hides_first):
            v.clamp_min_(0.9 * math.log(torch.finfo(v.dtype).tiny))
        v.exp_()
        if above is not None:
            v.mul_(above)  # of the hidden pairs none is above
        else:
            hide(v, 0.0)

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        slopes = None
        if self.fn is not None:
            v, slopes = _linearised(self.fn, v, params, self.slope)
        if self.hides_first:
            hide(v, -BIG)
        above = torch.gt(v, params[0][:, None], out=spare(0)) if self.mined else None
        if self.running:
            v.sub_(state.get("local", state["shift"])[:, None])
        self._exp(v, above, hide)
        return self._weights(v, slopes, None)

    def _weights(self, p: Tensor, slopes, state: State | None) -> Tensor:
        if slopes is None:
            return p
        by_value, *by_param = slopes(p)
        if state is not None:
            for k, slope in enumerate(by_param):
                state[f"slope{k}"].add_(slope)
        return by_value

    def combine(self, state: State, processes: Processes) -> None:
        if self.hardest:
            processes.max_(state["hardest"])
        rescale = torch.ones_like(state["sum"])
        if self.running:
            state["local"] = state["shift"]
            state["shift"] = processes.max_(state["shift"].clone())
            rescale = torch.exp(state["local"] - state["shift"])
        # The sums become everybody's, what stands beside them (B, the slopes) stays partial.
        state["partial"] = rescale
        state["sum"] = processes.sum_(state["sum"] * rescale)

    def finish(self, state: State) -> tuple[list[Tensor], Tensor]:
        total = state["sum"]
        factor = torch.where(total > 0, 1 / total, 0) * state.get("partial", 1.0)
        value = state["shift"] + total.log()
        value = torch.where(total > 0, value, -math.inf)
        return [value, state["hardest"]] if self.hardest else [value], factor


class HingeSum:
    """Σ [v - t]₊ (``above``) or Σ [t - v]₊, or their squares; t is the one parameter. Second output: how many
    are positive, as floats."""

    differentiable = True

    def __init__(self, *, above: bool, squared: bool = False, count: bool = False) -> None:
        self.above, self.squared, self.count = above, squared, count

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        return {name: like.new_zeros(rows) for name in ("sum", "count", "slope0")}

    def _hinge(self, v: Tensor, t: Tensor, hide: Hide) -> Tensor:
        hide(v, -BIG if self.above else BIG)
        return (v.sub_(t[:, None]) if self.above else torch.sub(t[:, None], v, out=v)).clamp_min_(0)

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        v = self._hinge(v, params[0], hide)
        if not self.squared:
            state["sum"].add_(v.sum(1))
            v.sign_()
            state["count"].add_(v.sum(1))
            return v
        state["sum"].add_(torch.linalg.vector_norm(v, dim=1).square_())
        state["slope0"].add_(v.sum(1))
        if self.count:
            state["count"].add_(torch.sign(v, out=spare(0)).sum(1))
        return v

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        v = self._hinge(v, params[0], hide)
        return v if self.squared else v.sign_()

    def combine(self, state: State, processes: Processes) -> None:
        if not self.squared:
            state["slope0"] = state["count"].clone()
        state["sum"] = processes.sum_(state["sum"])
        state["count"] = processes.sum_(state["count"].clone())
        state["combined"] = state["sum"]

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        factor = (2.0 if self.squared else 1.0) * (1 if self.above else -1)
        # dA/dt = -dA/dv, summed.
        slope = state["slope0"] if self.squared or "combined" in state else state["count"]
        state["slope0"] = -slope
        return [state["sum"], state["count"].clone()], factor


class SoftplusSum:
    """Σ log(1 + exp(v - t)) over scaled values; t is the one parameter."""

    differentiable = True

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        return {"sum": like.new_zeros(rows), "slope0": like.new_zeros(rows)}

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        v.sub_(params[0][:, None])
        # The identity beyond `threshold`, where the difference is below 1e-17.
        cost = torch.nn.functional.softplus(v, threshold=40.0)
        hide(cost, 0.0)
        state["sum"].add_(cost.sum(1))
        v.sigmoid_()
        hide(v, 0.0)
        state["slope0"].sub_(v.sum(1))
        return v

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        v.sub_(params[0][:, None]).sigmoid_()
        hide(v, 0.0)
        return v

    def combine(self, state: State, processes: Processes) -> None:
        state["sum"] = processes.sum_(state["sum"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [state["sum"]], 1.0


class ElementwiseSum:
    """Σ fn(v, *t) for any elementwise function in plain torch, differentiated tile by tile.

    Whatever ``fn`` detaches counts as a constant in the gradient.
    """

    differentiable = True

    wanted = True  # whether anybody needs the weights

    def __init__(self, fn: Elementwise, slope: Elementwise | None = None) -> None:
        self.fn, self.slope = fn, slope

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        names = ["sum", *(f"slope{k}" for k in range(len(params)))]
        return {name: like.new_zeros(rows) for name in names}

    def tile(
        self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int
    ) -> Tensor | None:
        f, slopes = _linearised(self.fn, v, params, self.slope)
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
        _, slopes = _linearised(self.fn, v, params, self.slope)
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


def _linearised(fn: Elementwise, v: Tensor, params: Sequence[Tensor], slope: Elementwise | None):
    """fn(v, *t) as a tile of its own, and the map from an upstream tile to slopes for v and each t [n]."""
    if slope is not None:
        fixed = [t[:, None] for t in params]
        value, given = fn(v, *fixed), slope(v, *fixed)
        return value, lambda upstream: [given * upstream, *(torch.zeros_like(t) for t in params)]
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

"""Log-sum-exps over the pairs of an anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.sums import Elementwise, State, linearised
from deepmetric.losses.streamed.tiles import BIG, LOG2E, Hide


class LogSumExp:
    """log Σ exp(v), of values that arrive multiplied by log2(e), or log Σ exp(fn(v, t)); -inf over nothing.

    With ``bounded`` the exponents are known to be too small to overflow and no maximum is taken off; otherwise
    it runs along and rescales what was summed (as flash attention does). With ``mined`` the first parameter is
    a threshold on the values as they arrive: only values above it are summed. Second output: the largest value,
    mined or not, -BIG over nothing.
    """

    differentiable = True
    side_by_side = True

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
        self.bits = LOG2E if fn is not None else 1.0  # exponents of 2 in a unit of the values

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        state = {"sum": like.new_zeros(rows)}
        # Above what stands for minus infinity, so that exp2(-BIG - shift) is 0 and not 1.
        state["shift"] = like.new_full((rows,), -0.1 * BIG if self.running else 0.0)
        if self.hardest:
            state["hardest"] = like.new_full((rows,), -BIG)
        for k in range(len(params)):
            state[f"slope{k}"] = like.new_zeros(rows)
        return state

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        slopes = None
        if self.fn is not None:
            v, slopes = linearised(self.fn, v, params, self.slope)
        hide(v, -BIG)
        top = v.amax(1) if self.hardest or self.running else None
        if self.hardest and top is not None:
            torch.maximum(state["hardest"], top, out=state["hardest"])
        if self.running and top is not None:
            shift = torch.maximum(state["shift"], top.mul_(self.bits))
            rescale = torch.exp2(state["shift"] - shift)
            state["sum"].mul_(rescale)
            for k in range(len(params)):
                state[f"slope{k}"].mul_(rescale)
            state["shift"], state["rescale"] = shift, rescale
        self._exp(v, params, state["shift"], hide, spare)
        state["sum"].add_(v.sum(1))
        return self._weights(v, slopes, state)

    def _exp(self, v: Tensor, params: Sequence[Tensor], shift: Tensor, hide: Hide, spare) -> None:
        above = torch.gt(v, params[0][:, None], out=spare(0)) if self.mined else None
        if self.running:
            torch.add(-shift[:, None], v, alpha=self.bits, out=v)
            # Numbers below the normal range are slow in all that follows: cut off where they no longer count.
            v.clamp_min_(0.9 * math.log2(torch.finfo(v.dtype).tiny))
        v.exp2_()
        if above is not None:
            v.mul_(above)  # of the hidden pairs none is above
        elif self.running:
            hide(v, 0.0)

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        slopes = None
        if self.fn is not None:
            v, slopes = linearised(self.fn, v, params, self.slope)
        hide(v, -BIG)
        self._exp(v, params, state.get("local", state["shift"]), hide, spare)
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
            rescale = torch.exp2(state["local"] - state["shift"])
        # The sums become everybody's, what stands beside them (B, the slopes) stays partial.
        state["partial"] = rescale
        state["sum"] = processes.sum_(state["sum"] * rescale)

    def finish(self, state: State) -> tuple[list[Tensor], Tensor]:
        total = torch.where(state["shift"] > -0.05 * BIG, state["sum"], 0)  # -inf alone is as nothing
        factor = torch.where(total > 0, 1 / (LOG2E * total / self.bits), 0) * state.get("partial", 1.0)
        value = (state["shift"] + total.log2()) / LOG2E
        value = torch.where(total > 0, value, -math.inf)
        return [value, state["hardest"]] if self.hardest else [value], factor

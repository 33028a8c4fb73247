"""Sums over all triplets: each negative of an anchor against a threshold for each of its positives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.softplus import softplus_total
from deepmetric.losses.streamed.sums import State
from deepmetric.losses.streamed.tiles import BIG, LOG2E, Hide

# From this many thresholds an anchor on, a binary search for each value is cheaper than a pass for each
# threshold (256 x 65,536 values on 2 cores: 3 ms a pass, 70 to 100 ms a search).
SEARCH_FROM = 28


class HingeSteps:
    """Σ_k Σ_j [v_j - t_k]₊ over values with start_k < v_j < stop_k.

    Parameters: t, start, stop [n, K], where missing thresholds are +BIG in ``t`` and ``start``; only t has a
    gradient. ``start >= t``. Second output: how many pairs (j, k) are summed [n].

    The slope of the sum is a count, so the count of thresholds that each value has passed is all that a tile
    needs: the sums follow from these counts.
    """

    differentiable = True

    def __init__(self, *, stops: bool) -> None:
        self.stops = stops

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        t, begin = params[:2]
        self.used = used_rows(begin < 0.5 * BIG)
        # Sums are taken of v - centre, with a centre among the thresholds, so that no digits cancel.
        real = begin < 0.5 * BIG
        centre = torch.where(real, t, 0).sum(1) / real.sum(1).clamp_min(1)
        return {"weighted": like.new_zeros(rows), "count": torch.zeros_like(t), "centre": centre, "t": t}

    def _counts(self, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, state: State | None) -> Tensor:
        """How many intervals (start_k, stop_k) each value is in, [n, m]."""
        hide(v, -BIG)
        _, begin, end = params
        if begin.shape[1] >= SEARCH_FROM:
            return self._searched(v, begin, end, state)
        inside = spare(0).zero_()
        for k, n in enumerate(self.used):
            passed = torch.gt(v[:n], begin[:n, k : k + 1], out=spare(1)[:n])
            if self.stops:
                passed.mul_(torch.lt(v[:n], end[:n, k : k + 1], out=spare(2)[:n]))
            if state is not None:
                state["count"][:n, k].add_(passed.sum(1))
            inside[:n].add_(passed)
        return inside

    def _searched(self, v: Tensor, begin: Tensor, end: Tensor, state: State | None) -> Tensor:
        inside, counts = _passed(v, begin, right=False, count=state is not None)
        if self.stops:
            # v < stop is "not (v >= stop)": of the starts passed, take off the stops reached.
            reached, reached_counts = _passed(
                v, torch.maximum(begin, end), right=True, count=state is not None
            )
            inside = inside - reached
            counts = counts - reached_counts if counts is not None and reached_counts is not None else None
        if state is not None and counts is not None:
            state["count"].add_(counts)
        return inside

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        inside = self._counts(v, params, hide, spare, state)
        hide(v, 0.0)
        state["weighted"].add_(v.sub_(state["centre"][:, None]).mul_(inside).sum(1))
        return inside

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        return self._counts(v, params, hide, spare, None)

    def combine(self, state: State, processes: Processes) -> None:
        state["slope0"] = state["count"].clone()
        state["count"] = processes.sum_(state["count"])
        state["weighted"] = processes.sum_(state["weighted"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        count = state["count"]
        offset = torch.where(count > 0, state.pop("t") - state["centre"][:, None], 0)
        value = state["weighted"] - (offset * count).sum(1)
        state["slope0"] = -state.get("slope0", count)
        return [value, count.sum(1)], 1.0


def used_rows(used: Tensor) -> list[int]:
    """For each slot [n, K] one more than the last row that uses it."""
    return (used * torch.arange(1, len(used) + 1, device=used.device)[:, None]).amax(0).tolist()


def _passed(v: Tensor, thresholds: Tensor, *, right: bool, count: bool) -> tuple[Tensor, Tensor | None]:
    """How many thresholds of its row each value has passed, and how many values have passed each."""
    ordered, order = thresholds.sort(dim=1)
    passed = torch.searchsorted(ordered, v.contiguous(), right=right)
    if not count:
        return passed.to(v.dtype), None
    n, k = thresholds.shape
    row = torch.arange(n, device=v.device)[:, None] * (k + 1)
    histogram = torch.bincount((passed + row).view(-1), minlength=n * (k + 1)).view(n, k + 1)
    # Threshold r (of the ordered) is passed by the values that have passed more than r.
    above = histogram.flip(1).cumsum(1).flip(1)[:, 1:].to(v.dtype)
    return passed.to(v.dtype), torch.zeros_like(above).scatter_(1, order, above)


class SoftSteps:
    """Σ_k Σ_j log(1 + exp(v_j - t_k)) over values with start_k < v_j < stop_k; parameters as of HingeSteps.

    With a finite ``bound`` on the values (those of unit rows) exp(v) is taken once, and one logarithm stands for
    many terms: log Π (1 + exp(v) / exp(t_k)).
    """

    differentiable = True

    def __init__(self, *, intervals: bool, bound: float) -> None:
        self.intervals, self.bound = intervals, bound
        self.product = bound <= 4

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        t, begin = params[:2]
        real = begin < 0.5 * BIG
        self.used = used_rows(real)
        if self.product:
            # The largest factor, and the product that is still in range, as logarithms.
            lowest = float(torch.where(real, t, self.bound).amin()) if t.numel() else 0.0
            self.factor = math.log1p(math.exp(min(self.bound - lowest, 80)))
            self.room = 0.9 * math.log(torch.finfo(t.dtype).max)
        return {"sum": like.new_zeros(rows), "slope0": torch.zeros_like(t), "count": torch.zeros_like(t)}

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        return self._tile(state, v, params, hide, spare)

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        return self._tile(None, v, params, hide, spare)

    def _tile(self, state: State | None, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        hide(v, -BIG)
        return (self._by_products if self.product else self._by_terms)(state, v, params, spare)

    def _shown(self, state: State | None, v: Tensor, params: Sequence[Tensor], k: int, spare) -> Tensor:
        """Whether each value is between start and stop k, as floats."""
        n = len(v)
        _, begin, end = params
        shown = torch.gt(v, begin[:n, k : k + 1], out=spare(2)[:n])
        shown.mul_(torch.lt(v, end[:n, k : k + 1], out=spare(3)[:n]))
        if state is not None:
            state["count"][:n, k].add_(shown.sum(1))
        return shown

    def _by_products(self, state: State | None, v: Tensor, params: Sequence[Tensor], spare) -> Tensor:
        slopes, product = spare(0).zero_(), spare(4).fill_(1)
        odds = torch.mul(v, LOG2E, out=spare(5)).exp2_()
        inverse = torch.exp(-params[0])
        together = max(int(self.room / self.factor), 1)  # factors that may be multiplied
        factors = 0
        for k, n in enumerate(self.used):
            term = torch.mul(odds[:n], inverse[:n, k : k + 1], out=spare(1)[:n])
            if self.intervals:
                term.mul_(self._shown(state, v[:n], params, k, spare))
            term.add_(1)
            if state is not None:
                product[:n].mul_(term)
                factors += 1
                if factors == together or k == len(self.used) - 1:
                    state["sum"].add_(self._log(product, factors))
                    product, factors = spare(4).fill_(1), 0
            # 1 - sigmoid, which is 1 at hidden pairs; the ones are added below.
            rest = term.reciprocal_()
            slopes[:n].sub_(rest)
            if state is not None:
                state["slope0"][:n, k].add_(rest.sum(1)).sub_(v.shape[1])
        return slopes.add_((params[1] < 0.5 * BIG).sum(1, keepdim=True))

    def _log(self, product: Tensor, factors: int) -> Tensor:
        """Sums of the logarithms of each row's products of so many factors; columns are multiplied while that is in
        range."""
        while product.shape[1] % 2 == 0 and 2 * factors * self.factor <= self.room:
            first, second = product.chunk(2, 1)
            product, factors = first.mul_(second), 2 * factors
        return product.log().sum(1)

    def _by_terms(self, state: State | None, v: Tensor, params: Sequence[Tensor], spare) -> Tensor:
        slopes = spare(0).zero_()
        for k, n in enumerate(self.used):
            term = torch.sub(v[:n], params[0][:n, k : k + 1], out=spare(1)[:n])
            if self.intervals:
                term.add_(self._shown(state, v[:n], params, k, spare).sub_(1), alpha=BIG)
            if state is not None:
                state["sum"][:n].add_(softplus_total(term, spare(4)[:n], spare(5)[:n]))
            sigmoid = term.sigmoid_()
            if state is not None:
                state["slope0"][:n, k].sub_(sigmoid.sum(1))
            slopes[:n].add_(sigmoid)
        return slopes

    def combine(self, state: State, processes: Processes) -> None:
        state["sum"] = processes.sum_(state["sum"])
        state["count"] = processes.sum_(state["count"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [state["sum"], state["count"].sum(1)], 1.0

"""Sums over all triplets: each negative of an anchor against a threshold for each of its positives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.softplus import sigmoid_, softplus_total
from deepmetric.losses.streamed.sums import State
from deepmetric.losses.streamed.tiles import BIG, LOG2E, Hide

# From this many thresholds an anchor on, a binary search for each value is cheaper than a pass for each
# threshold (256 x 65,536 values on 2 cores: 3 ms a pass, 70 to 100 ms a search).
SEARCH_FROM = 28


class Slot(NamedTuple):
    """What belongs to threshold k of each anchor: the first rows of everything, up to the last that has one."""

    v: Tensor
    t: Tensor
    begin: Tensor
    end: Tensor
    spare: list[Tensor]
    counts: Tensor  # [n]
    slopes: Tensor  # [n]


class Slots:
    """The slots of a tile, by descending rows. Views take as long to make as a small operation, and nearly all tiles
    have the same."""

    def __init__(self, used: list[int], spares: int) -> None:
        self.used, self.spares = used, spares
        self.of: Tensor | None = None
        self.slots: list[Slot] = []

    def __call__(self, v: Tensor, params: Sequence[Tensor], spare, state: State) -> list[Slot]:
        if self.of is not v:
            work = [spare(i) for i in range(self.spares)]
            slope = state.get("slope0", state["count"])
            self.of, self.slots = v, []
            for k, n in enumerate(self.used):
                t, begin, end = (part[:n, k : k + 1] for part in params)
                beside = [tile[:n] for tile in work]
                self.slots.append(Slot(v[:n], t, begin, end, beside, state["count"][:n, k], slope[:n, k]))
        return self.slots

    def forget(self) -> None:
        """Let go of the work space."""
        self.of, self.slots = None, []


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
        real = begin < 0.5 * BIG
        self.slots = Slots(used_rows(real), 3)
        # Sums are taken of v - centre, so that no digits cancel.
        centre = _centre(t, real)
        return {"weighted": like.new_zeros(rows), "count": torch.zeros_like(t), "centre": centre, "t": t}

    def _counts(
        self, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, state: State, *, count: bool
    ) -> Tensor:
        """How many intervals (start_k, stop_k) each value is in, [n, m]."""
        hide(v, -BIG)
        _, begin, end = params
        if begin.shape[1] >= SEARCH_FROM:
            return self._searched(v, begin, end, state if count else None)
        every = spare(0).zero_()
        for slot in self.slots(v, params, spare, state):
            inside, passed, reached = slot.spare
            torch.gt(slot.v, slot.begin, out=passed)
            if self.stops:
                passed.mul_(torch.lt(slot.v, slot.end, out=reached))
            if count:
                slot.counts.add_(passed.sum(1))
            inside.add_(passed)
        return every

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
        inside = self._counts(v, params, hide, spare, state, count=True)
        hide(v, 0.0)
        state["weighted"].add_(v.sub_(state["centre"][:, None]).mul_(inside).sum(1))
        return inside

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        return self._counts(v, params, hide, spare, state, count=False)

    def combine(self, state: State, processes: Processes) -> None:
        state["slope0"] = state["count"].clone()
        state["count"] = processes.sum_(state["count"])
        state["weighted"] = processes.sum_(state["weighted"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        self.slots.forget()
        count = state["count"]
        offset = torch.where(count > 0, state.pop("t") - state["centre"][:, None], 0)
        value = state["weighted"] - (offset * count).sum(1)
        state["slope0"] = -state.get("slope0", count)
        return [value, count.sum(1)], 1.0


def used_rows(used: Tensor) -> list[int]:
    """For each slot [n, K] one more than the last row that uses it."""
    if not len(used):
        return [0] * used.shape[1]
    return (used * torch.arange(1, len(used) + 1, device=used.device)[:, None]).amax(0).tolist()


def _centre(t: Tensor, real: Tensor) -> Tensor:
    """The mean of each row's thresholds [n], of those that are ``real``; 0 where none is."""
    return torch.where(real, t, 0).sum(1) / real.sum(1).clamp_min(1)


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
    """Σ_k Σ_j log(1 + exp(v_j - t_k)) over values with start_k < v_j < stop_k; parameters as of HingeSteps, and the
    second output too (0 without ``intervals``, where all are summed).

    Where values and thresholds of an anchor are not far apart, exp(v) is taken once for all thresholds and one
    logarithm for many terms: log Π (1 + exp(v) / exp(t_k)), to which a term below the rounding of 1 adds nothing. (So a
    mean of less than a millionth is not known to many digits in float32; slopes are.)
    ``bound`` is what no value exceeds; on a CPU each tile is looked at instead.
    """

    differentiable = True

    def __init__(self, *, intervals: bool, bound: float) -> None:
        self.intervals, self.bound = intervals, bound

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        t, begin = params[:2]
        real = begin < 0.5 * BIG
        used = used_rows(real)
        self.slots = Slots(used, 5)
        # Exponentials are taken of v - centre.
        centre = _centre(t, real)[:, None]
        apart = torch.where(real, centre - t, 0)
        inverse = (apart * LOG2E).exp2_()
        self.shift, self.inverse = centre * -LOG2E, [inverse[:n, k : k + 1] for k, n in enumerate(used)]
        self.spread = float(apart.abs().amax()) if t.numel() else 0.0
        self.highest = self.bound - float(centre.amin()) if len(t) else 0.0
        self.room = 0.9 * math.log(torch.finfo(t.dtype).max)  # the largest product in range, as a logarithm
        return {"sum": like.new_zeros(rows), "slope0": torch.zeros_like(t), "count": torch.zeros_like(t)}

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> Tensor:
        return self._tile(state, v, params, hide, spare, count=True)

    def replay(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare) -> Tensor:
        return self._tile(state, v, params, hide, spare, count=False)

    def _tile(
        self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, *, count: bool
    ) -> Tensor:
        hide(v, -BIG)
        slots, odds = self.slots(v, params, spare, state), spare(4)
        torch.add(self.shift, v, alpha=LOG2E, out=odds)
        highest = self.highest if v.is_cuda else float(odds.amax()) / LOG2E
        slopes = spare(0).zero_()
        # Half of the range is for thresholds, so that exp(v) does not vanish where it is near one of them.
        if self.spread <= self.room / 2 and highest + self.spread <= self.room - 1:
            odds.exp2_()
            self._by_products(slots, highest, state["sum"] if count else None)
        else:
            self._by_terms(slots, state["sum"] if count else None)
        return slopes

    def _shown(self, slot: Slot, *, count: bool) -> Tensor:
        """Whether each value is between start and stop k, as floats in the third spare tile."""
        _, reached, shown, *_ = slot.spare
        torch.gt(slot.v, slot.begin, out=shown).mul_(torch.lt(slot.v, slot.end, out=reached))
        if count:
            slot.counts.add_(shown.sum(1))
        return shown

    def _by_products(self, slots: list[Slot], highest: float, total: Tensor | None) -> None:
        """Adds the slopes to the first spare tile and, where they are counted, the sums to ``total`` [n]."""
        largest = math.log1p(math.exp(highest + self.spread))  # factor, as a logarithm
        together = int(self.room / max(largest, 0.01))  # factors that may be multiplied
        for lo in range(0, len(slots), together):
            multiplied = slots[lo : lo + together]
            product = multiplied[0].spare[3].fill_(1)
            for slot, inverse in zip(multiplied, self.inverse[lo:]):
                slopes, term, factor, factors, odds = slot.spare
                shown = self._shown(slot, count=total is not None) if self.intervals else None
                torch.mul(odds, inverse, out=term)
                if shown is not None:
                    term.mul_(shown)
                torch.add(term, 1, out=factor)
                sigmoid = term.div_(factor)
                slopes.add_(sigmoid)
                if total is not None:
                    factors.mul_(factor)
                    slot.slopes.sub_(sigmoid.sum(1))
            if total is not None:
                total[: product.shape[0]].add_(self._log(product, len(multiplied) * largest))

    def _log(self, product: Tensor, largest: float) -> Tensor:
        """Sums of the logarithms of each row's products, which are at most ``largest``; columns are multiplied while
        that is in range."""
        while product.shape[1] % 2 == 0 and 2 * largest <= self.room:
            first, second = product.chunk(2, 1)
            product, largest = first.mul_(second), 2 * largest
        return product.log().sum(1)

    def _by_terms(self, slots: list[Slot], total: Tensor | None) -> None:
        """As :meth:`_by_products`."""
        for slot in slots:
            slopes, term, _, e, spare = slot.spare
            shown = self._shown(slot, count=total is not None) if self.intervals else None
            torch.sub(slot.v, slot.t, out=term)
            if shown is not None:
                term.add_(shown.sub_(1), alpha=BIG)
            if total is None:
                sigmoid = term.sigmoid_()
            else:
                total[: len(e)].add_(softplus_total(term, e, spare))
                sigmoid = sigmoid_(term, e)
                slot.slopes.sub_(sigmoid.sum(1))
            slopes.add_(sigmoid)

    def combine(self, state: State, processes: Processes) -> None:
        state["sum"] = processes.sum_(state["sum"])
        state["count"] = processes.sum_(state["count"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        self.slots.forget()
        return [state["sum"], state["count"].sum(1)], 1.0

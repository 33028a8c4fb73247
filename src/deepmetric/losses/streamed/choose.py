"""Reductions that choose pairs: the hardest, the nearest beyond a positive, the k nearest, a random one.

They have no gradient. What they choose is a short list of pairs, whose values are taken once more with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.steps import used_rows
from deepmetric.losses.streamed.sums import Elementwise, State
from deepmetric.losses.streamed.tiles import BIG, LOG2E, Hide


class Largest:
    """The largest value of each anchor, -BIG over nothing, and its rank, -1 over nothing.

    With ``below``, for each of the thresholds [n, K] that are the one parameter the largest value below it,
    [n, K] each.
    """

    differentiable = False

    def __init__(self, *, below: bool = False) -> None:
        self.below = below

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        shape = params[0].shape if self.below else (rows,)
        if self.below:
            self.used = used_rows(params[0] > -BIG)
        return {
            "value": like.new_full(shape, -0.5 * BIG),
            "rank": torch.full(shape, -1, device=like.device),
        }

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> None:
        hide(v, -BIG)
        if not self.below:
            _keep_better(state["value"], state["rank"], *_ranked(v, lo))
            return
        for k, n in enumerate(self.used):
            bound, best = params[0][:n, k : k + 1], state["value"][:n, k]
            below = torch.ge(v[:n], bound, out=spare(0)[:n])
            torch.add(v[:n], below, alpha=-BIG, out=below)
            if v.is_cuda:
                _keep_better(best, state["rank"][:n, k], *_ranked(below, lo))
                continue
            # The place of a maximum costs several times its value, and few tiles better a row's best.
            better = (below.amax(1) > best).nonzero()[:, 0]
            if len(better):
                best[better], state["rank"][better, k] = _ranked(below[better], lo)

    def combine(self, state: State, processes: Processes) -> None:
        processes.keep_owned(state["value"], state["rank"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [torch.where(state["value"] > -0.4 * BIG, state["value"], -BIG), state["rank"]], 1.0


class Extreme:
    """The largest value of each anchor without its place, -BIG over nothing."""

    differentiable = False
    side_by_side = True

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        return {"value": like.new_full((rows,), -BIG)}

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> None:
        hide(v, -BIG)
        torch.maximum(state["value"], v.amax(1), out=state["value"])

    def combine(self, state: State, processes: Processes) -> None:
        processes.max_(state["value"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [state["value"]], 1.0


class TopK:
    """The k largest values of each anchor in descending order [n, k] and their ranks, -BIG and -1 where there
    are fewer."""

    differentiable = False

    def __init__(self, k: int) -> None:
        self.k = k

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        return {
            "value": like.new_full((rows, self.k), -BIG),
            "rank": torch.full((rows, self.k), -1, device=like.device),
        }

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> None:
        hide(v, -BIG)
        value, rank = v.topk(min(self.k, v.shape[1]), dim=1, sorted=False)
        rank = torch.where(value > -0.4 * BIG, rank + lo, -1)
        joined = torch.cat([state["value"], value], 1)
        value, place = joined.topk(self.k, dim=1)
        state["value"], state["rank"] = value, torch.cat([state["rank"], rank], 1).gather(1, place)

    def combine(self, state: State, processes: Processes) -> None:
        every = [torch.empty_like(state["value"]) for _ in range(processes.size)]
        dist.all_gather(every, state["value"].contiguous(), group=processes.group)
        state["value"], place = torch.cat(every, 1).topk(self.k, dim=1)
        place = place - processes.rank * self.k
        mine = (place >= 0) & (place < self.k)
        state["rank"] = torch.where(mine, state["rank"].gather(1, place.clamp(0, self.k - 1)), -1)

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [state["value"], state["rank"]], 1.0


class Sample:
    """``draws`` ranks of each anchor [n, draws], drawn with replacement with weights exp(log_weight(v)); -1
    where no pair has a weight.

    A tile takes a draw over from those before it with the share of the weight so far that is its own, and within
    the tile the draw goes by cumulated weights: exactly as if drawn from all at once, with two random numbers a
    tile instead of one a pair. Weights are taken relative to the largest of the row so far, so that no row
    underflows however wide their range.
    """

    differentiable = False
    side_by_side = True

    def __init__(self, log_weight: Elementwise, draws: int, generator: torch.Generator | None = None) -> None:
        self.log_weight, self.draws, self.generator = log_weight, draws, generator

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> State:
        return {
            "top": like.new_full((rows, 1), -0.1 * BIG),
            "mass": like.new_zeros(rows, 1),
            "rank": torch.full((rows, self.draws), -1, device=like.device),
        }

    def tile(self, state: State, v: Tensor, params: Sequence[Tensor], hide: Hide, spare, lo: int) -> None:
        weight = self.log_weight(v)
        hide(weight, -BIG)
        # Of a row without weights above what stands for none: exp(-BIG - top) must be 0.
        top = torch.maximum(weight.amax(1, keepdim=True), state["top"])
        torch.add(top * -LOG2E, weight, alpha=LOG2E, out=weight).exp2_()
        mass = weight.sum(1, keepdim=True)
        state["mass"].mul_(((state["top"] - top) * LOG2E).exp2_()).add_(mass)
        state["top"] = top
        won = self._random(v, v.shape[0]) < mass / state["mass"]
        rows = won.any(1).nonzero()[:, 0]
        if not rows.shape[0]:
            return
        cumulated = weight[rows].cumsum(1)
        total = cumulated[:, -1:]
        target = self._random(v, rows.shape[0]) * total
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        rank = torch.searchsorted(cumulated, target, right=True) + lo
        state["rank"][rows] = torch.where(won[rows], rank, state["rank"][rows])

    def _random(self, like: Tensor, rows: int) -> Tensor:
        return torch.rand(rows, self.draws, generator=self.generator, device=like.device, dtype=like.dtype)

    def combine(self, state: State, processes: Processes) -> None:
        # The largest of log weight + Gumbel noise is with each process as often as its weight says.
        noise = torch.empty_like(state["rank"], dtype=state["mass"].dtype)
        noise.exponential_(generator=self.generator).log_()
        key = torch.where(state["mass"] > 0, state["top"] + state["mass"].log() - noise, -BIG)
        processes.keep_owned(key, state["rank"])

    def finish(self, state: State) -> tuple[list[Tensor], float]:
        return [state["rank"]], 1.0


def _ranked(v: Tensor, lo: int) -> tuple[Tensor, Tensor]:
    value, column = v.max(1)
    return value, column + lo


def _keep_better(value: Tensor, rank: Tensor, new_value: Tensor, new_rank: Tensor) -> None:
    better = new_value > value
    value.copy_(torch.where(better, new_value, value))
    rank.copy_(torch.where(better, new_rank, rank))

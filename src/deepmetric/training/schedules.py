"""Learning-rate schedules: a warm-up, then a shape.

Each multiplies the learning rate of every parameter group by one factor in (0, 1]. A recipe names one by its
class; the trainer gives it the optimiser and the number of steps, steps it after every training step and tells it
every validation score.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deepmetric.errors import InputError


class Schedule(LambdaLR):
    """Constant learning rate after a linear warm-up; the base of the other schedules.

    Args:
        optimizer: whose groups' learning rates are set.
        total_steps: training steps of the whole run.
        warmup_steps: the first steps, over which the factor rises linearly from ``1 / warmup_steps`` to 1.

    Raises:
        InputError: if the warm-up is negative or longer than the run.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0):
        if not 0 <= warmup_steps <= total_steps:
            raise InputError(
                f"`warmup_steps` of the schedule must be between 0 and the {total_steps} steps of the run, "
                f"got {warmup_steps}. Set `schedule.warmup_steps`."
            )
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.shape(step - self.warmup_steps, max(1, self.total_steps - self.warmup_steps))

    def shape(self, step: int, steps: int) -> float:
        """Factor at ``step`` (0-based) of the ``steps`` that follow the warm-up."""
        return 1.0

    def on_score(self, score: float) -> None:
        """Take note of a validation score, the higher the better."""


class CosineSchedule(Schedule):
    """From the full learning rate to ``final_factor`` of it along half a cosine (Loshchilov & Hutter, ICLR 2017)."""

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, final_factor: float = 0.0
    ):
        self.final_factor = _share("final_factor", "CosineSchedule", final_factor)
        super().__init__(optimizer, total_steps, warmup_steps)

    def shape(self, step: int, steps: int) -> float:
        cosine = (1 + math.cos(math.pi * min(step, steps) / steps)) / 2
        return self.final_factor + (1 - self.final_factor) * cosine


class StepSchedule(Schedule):
    """The learning rate times ``gamma`` at each of the ``milestones`` (steps of the run, warm-up included)."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_steps: int = 0,
    ):
        self.milestones = sorted(milestones)
        self.gamma = _share("gamma", "StepSchedule", gamma)
        super().__init__(optimizer, total_steps, warmup_steps)

    def shape(self, step: int, steps: int) -> float:
        passed = sum(step + self.warmup_steps >= milestone for milestone in self.milestones)
        return self.gamma**passed


class PlateauSchedule(Schedule):
    """The learning rate times ``factor`` when ``patience`` validations in a row have not beaten the best one.

    Args:
        factor: multiplier in (0, 1).
        patience: validations without a new best score after which the rate falls; the count then starts anew.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        factor: float = 0.1,
        patience: int = 3,
        warmup_steps: int = 0,
    ):
        if not 0 < factor < 1:
            raise InputError(f"`factor` of PlateauSchedule must be between 0 and 1, got {factor}.")
        if patience < 1:
            raise InputError(f"`patience` of PlateauSchedule must be at least 1, got {patience}.")
        self.factor = factor
        self.patience = patience
        self.level = 1.0
        self.best = -math.inf
        self.stale = 0
        super().__init__(optimizer, total_steps, warmup_steps)

    def shape(self, step: int, steps: int) -> float:
        return self.level

    def on_score(self, score: float) -> None:
        if score > self.best:
            self.best, self.stale = score, 0
            return
        self.stale += 1
        if self.stale >= self.patience:
            self.level *= self.factor
            self.stale = 0


def _share(name: str, owner: str, value: float) -> float:
    """``value``; a negative one would turn the steps round, one above 1 would pass the recipe's learning rate."""
    if not 0 <= value <= 1:
        raise InputError(f"`{name}` of {owner} must be between 0 and 1, got {value}.")
    return value

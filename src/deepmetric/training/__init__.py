"""The loop: recipe -> trained model, with memory, checkpoints and resumption."""

from deepmetric.training.procedure import Procedure
from deepmetric.training.recipe import LearningRates, Loop, Published, Recipe
from deepmetric.training.run import Run, load_run
from deepmetric.training.schedules import CosineSchedule, PlateauSchedule, Schedule, StepSchedule
from deepmetric.training.trainer import Trainer

__all__ = [
    "CosineSchedule",
    "LearningRates",
    "Loop",
    "PlateauSchedule",
    "Procedure",
    "Published",
    "Recipe",
    "Run",
    "Schedule",
    "StepSchedule",
    "Trainer",
    "load_run",
]

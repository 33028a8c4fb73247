"""The loop: recipe -> trained model, with memory, checkpoints and resumption."""

from deepmetric.training.bier import BIER
from deepmetric.training.class_tree import ClassMeans, build_class_tree, class_means, nearest_classes
from deepmetric.training.hardness import HardnessController
from deepmetric.training.htl import HTL
from deepmetric.training.procedure import Procedure
from deepmetric.training.recipe import LearningRates, Loop, Published, Recipe
from deepmetric.training.run import Run, load_run
from deepmetric.training.schedules import CosineSchedule, PlateauSchedule, Schedule, StepSchedule
from deepmetric.training.smart_mining import SmartMining
from deepmetric.training.trainer import Trainer

__all__ = [
    "BIER",
    "HTL",
    "ClassMeans",
    "CosineSchedule",
    "HardnessController",
    "LearningRates",
    "Loop",
    "PlateauSchedule",
    "Procedure",
    "Published",
    "Recipe",
    "Run",
    "Schedule",
    "SmartMining",
    "StepSchedule",
    "Trainer",
    "build_class_tree",
    "class_means",
    "load_run",
    "nearest_classes",
]

"""A run's folder: what a training run leaves, and how to open it again.

RUN/recipe.yaml            the resolved recipe
RUN/data.json              which items there were, and the classes that are trained on
RUN/metrics.jsonl          one JSON object a line: training (loss, learning rates) and evaluations
RUN/tensorboard/           the same for TensorBoard
RUN/checkpoints/last.pt    to resume from
RUN/checkpoints/best.pt    the state at the best validation MAP@R
RUN/model/                 the best model, for `deepmetric.load`
RUN/skipped.txt            unreadable files that were left out, if any
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepmetric.atomic import write_atomically
from deepmetric.errors import InputError

if TYPE_CHECKING:
    from deepmetric.data import Dataset
    from deepmetric.models import EmbeddingModel
    from deepmetric.training.recipe import Recipe


class Run:
    """The folder of one training run.

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def data_file(self) -> Path:
        return self.folder / "data.json"

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "best.pt"

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the run was made with."""
        from deepmetric.training.parse import parse_recipe

        return parse_recipe(["--config", str(self.recipe_file)])[0]

    def dataset(self) -> Dataset:
        """The data of the recipe, all splits."""
        return self.recipe.data()

    def record_data(self, data: Dataset) -> None:
        """Keep what the run is made with: a folder may have other items tomorrow, and their classes other splits."""
        trained = data.split("train").with_classes_renumbered().classes
        record = {"items": len(data), "digest": data.digest(), "trained_classes": trained}
        text = json.dumps(record, ensure_ascii=False)
        write_atomically(self.data_file, lambda beside: beside.write_text(text, encoding="utf8"))

    @cached_property
    def data_record(self) -> dict[str, Any] | None:
        """What :meth:`record_data` kept; None of a run that has begun without it."""
        if not self.data_file.is_file():
            return None
        return json.loads(self.data_file.read_text(encoding="utf8"))

    def changed_data(self, data: Dataset) -> str | None:
        """How ``data`` differs from what the run was made with, in words; None where it does not, as far as known."""
        record = self.data_record
        if record is None or record["digest"] == data.digest():
            return None
        return (
            f"the data of {self.folder} have changed since it was begun: {record['items']:,} items then, {len(data):,} "
            "now, or other names, classes or splits"
        )

    def model(self) -> EmbeddingModel:
        """The best model, in evaluation mode."""
        from deepmetric.models.load import load

        return load(self.model_folder)

    def untrained_model(self) -> EmbeddingModel:
        """The model as it was before the first step: rebuilt from the recipe and its seed, in evaluation mode."""
        return initial_model(self.recipe).eval()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first."""
        return [json.loads(line) for line in self.metrics_file.read_text(encoding="utf8").splitlines()]


def initial_model(recipe: Recipe) -> EmbeddingModel:
    """The recipe's model with the weights that its seed gives."""
    torch.manual_seed(recipe.seed)
    return recipe.model()


def load_run(folder: str | Path) -> Run:
    """Open the folder of a run.

    Raises:
        InputError: if the folder does not hold a run.
    """
    run = Run(folder)
    if not run.folder.is_dir():
        raise InputError(f"there is no run at {run.folder}: no such folder.")
    if not run.recipe_file.is_file():
        raise InputError(
            f"{run.folder} is not the folder of a run: it has no recipe.yaml. Name the folder that "
            f"`deepmetric train` printed."
        )
    return run

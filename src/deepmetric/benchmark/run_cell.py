"""One cell: train on a fold, keep the model that is best on its validation classes (the last without), test it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock

from deepmetric.atomic import write_atomically, write_text
from deepmetric.benchmark.cells import Cell, write_arrays
from deepmetric.benchmark.open_data import OpenData
from deepmetric.benchmark.resolve import changes
from deepmetric.data import Dataset
from deepmetric.errors import InputError
from deepmetric.evaluation import embed_dataset, evaluate_embeddings
from deepmetric.evaluation.evaluate import searched
from deepmetric.training import Recipe, Run, Trainer


@dataclass
class Trained:
    """A fold's model, and what training it took."""

    run: Run
    recipe: Recipe
    best: dict[str, Any] | None  # the best evaluation on the validation classes; None: nothing validated
    steps: int


def train_fold(
    folder: Path,
    written: dict[str, Any],
    opened: OpenData,
    watch: Callable[[Trainer, dict[str, Any]], None] | None = None,
) -> Trained:
    """Train in ``folder``, from its last checkpoint if there is one. What training says goes to its log.txt.

    ``watch`` is called with the trainer and each evaluation on the validation classes.
    """
    run = Run(folder)
    check_same(folder, written)
    write_text(run.recipe_file, yaml.safe_dump(written, sort_keys=False))
    recipe = opened.recipe(written, run.recipe_file)
    with (folder / "log.txt").open("a", encoding="utf8") as log, redirect_stdout(log), redirect_stderr(log):
        trainer = Trainer(recipe, run)
        trainer.on_evaluation = None if watch is None else lambda scores: watch(trainer, scores)
        trainer.train(resume=run.last_checkpoint.is_file())
    scores = [line for line in run.metrics() if line.get("split") == "val"]
    best = max(scores, key=lambda line: line["map@r"], default=None)
    return Trained(run, recipe, best, trainer.step)


def check_same(folder: Path, written: dict[str, Any]) -> None:
    """See that a run that has begun in ``folder`` has the settings it would have now.

    Raises:
        InputError: other settings.
    """
    run = Run(folder)
    begun = run.last_checkpoint.is_file() or (folder / "result.json").is_file()
    if not begun or run.recipe_file.read_text(encoding="utf8") == yaml.safe_dump(written, sort_keys=False):
        return
    before = yaml.safe_load(run.recipe_file.read_text(encoding="utf8"))
    if found := changes(before, written):
        raise InputError(
            f"{folder} was begun with other settings: "
            + "; ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in found[:5])
            + ". Set them back, name another --out, or delete that folder to do it anew."
        )


def run_cell(cell: Cell, out: Path, written: dict[str, Any], opened: OpenData) -> dict[str, Any]:
    """Train and test a cell that this process has claimed; returns what it wrote to result.json."""
    folder, began = cell.folder(out), time.perf_counter()
    trained = train_fold(folder, written, opened)
    after_training = time.perf_counter()
    test = searched(trained.recipe.data().split("test"))
    embeddings = embed_dataset(trained.run.model().to(_device(trained.recipe)), test)
    after_embedding = time.perf_counter()
    scores = evaluate_embeddings(embeddings, test, ks=trained.recipe.training.ks)
    write_atomically(folder / "test_embeddings.npy", lambda beside: _save(beside, embeddings))
    done = time.perf_counter()
    result = {
        "cell": {"data": cell.data, "system": cell.system, "seed": cell.seed, "fold": cell.fold},
        "test": dict(scores),
        "validation": trained.best,
        "steps": trained.steps,
        "test_items": keep_test_items(test, cell.data, out),
        # of the last process that worked on it: after a kill, training is what was left of it
        "seconds": {
            "training and validation": round(after_training - began, 2),
            "embedding": round(after_embedding - after_training, 2),
            "evaluation": round(done - after_embedding, 2),
        },
    }
    write_text(folder / "result.json", json.dumps(result, indent=1))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def keep_test_items(test: Dataset, name: str, out: Path) -> str:
    """Write what the concatenated evaluation needs of the test items; returns a digest of it.

    Raises:
        InputError: other items than those of the cells before.
    """
    file = out / "data" / f"{name}.npz"
    digest = sha256("\n".join([*test.ids, *map(str, test.labels.tolist())]).encode("utf8", "surrogateescape"))
    digest = digest.hexdigest()[:16]
    sides = {"is_query": test.is_query, "is_gallery": test.is_gallery}
    arrays = {
        "ids": np.array(test.ids),
        "labels": test.labels,
        **sides,
        "digest": np.array(digest),
        "name": np.array(test.name or ""),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    # Two workers may end their first cells at the same time.
    with FileLock(file.with_suffix(".lock")):
        if not file.is_file():
            write_arrays(file, arrays)
    with np.load(file) as kept:
        same = str(kept["digest"]) == digest
        if not same or not all(np.array_equal(kept[side], mask) for side, mask in sides.items()):
            raise InputError(
                f"the test items of {name} are others than when this benchmark began ({file}). Use the same data, "
                "or another --out."
            )
    return digest


def _device(recipe: Recipe) -> str:
    from deepmetric.device import best_device

    return best_device() if recipe.training.device == "auto" else recipe.training.device


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add .npy to the name of a path
        np.save(file, array)

"""The finished cells of a benchmark as numbers: each model alone, and the folds' embeddings side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from deepmetric.benchmark.cells import Cell, all_cells, write_arrays
from deepmetric.data import Dataset
from deepmetric.errors import InputError
from deepmetric.evaluation import evaluate_embeddings
from deepmetric.evaluation.evaluate import RetrievalMetrics

METRICS = ("precision@1", "r_precision", "map@r")


@dataclass
class Scores:
    """What is finished of one data set.

    separated: system -> (seed, fold) -> metric -> value of that model on the test classes.
    concatenated: system -> seed -> metrics of that seed's embeddings side by side; seeds whose folds are all finished.
    test: the test items.
    """

    separated: dict[str, dict[tuple[int, int], dict[str, float]]] = field(default_factory=dict)
    concatenated: dict[str, dict[int, RetrievalMetrics]] = field(default_factory=dict)
    test: Dataset | None = None

    @property
    def query_classes(self) -> np.ndarray:
        """int64 [queries]."""
        assert self.test is not None
        return self.test.labels[self.test.is_query]


@dataclass
class Results:
    """A benchmark's folder as it is now."""

    out: Path
    plan: dict[str, Any]  # plan.json
    cells: list[Cell]
    finished: dict[Cell, dict[str, Any]]  # result.json
    failed: dict[Cell, str]
    data: dict[str, Scores]  # of data sets with a finished cell

    @property
    def missing(self) -> list[Cell]:
        return [cell for cell in self.cells if cell not in self.finished]


def check_is_benchmark(out: Path) -> None:
    """Raise InputError if ``out`` is not the folder of a benchmark."""
    if not (out / "plan.json").is_file():
        raise InputError(f"{out} is not the folder of a benchmark: it has no plan.json. Name an --out of it.")


def read_results(out: Path) -> Results:
    """Everything that is finished in a benchmark's folder.

    Raises:
        InputError: if it is no such folder.
    """
    check_is_benchmark(out)
    plan = json.loads((out / "plan.json").read_text(encoding="utf8"))
    cells = all_cells(plan["seeds"], plan["folds"], plan["data"], plan["systems"])
    finished = {cell: cell.result(out) for cell in cells if cell.finished(out)}
    failed = {
        cell: (cell.folder(out) / "error.txt").read_text(encoding="utf8")
        for cell in cells
        if cell not in finished and cell.failed(out)
    }
    names = [name for name in plan["data"] if any(cell.data == name for cell in finished)]
    return Results(
        out, plan, cells, finished, failed, {name: _scores(out, plan, finished, name) for name in names}
    )


def _scores(out: Path, plan: dict[str, Any], finished: dict[Cell, dict[str, Any]], name: str) -> Scores:
    scores = Scores(test=_test_items(out / "data" / f"{name}.npz"))
    for cell, result in finished.items():
        if cell.data == name:
            scores.separated.setdefault(cell.system, {})[cell.seed, cell.fold] = result["test"]
    for system in scores.separated if plan["folds"] > 1 else ():
        for seed in plan["seeds"]:
            folds = [Cell(seed, fold, name, system) for fold in range(plan["folds"])]
            if all(cell in finished for cell in folds):
                assert scores.test is not None
                metrics = concatenated(out, folds, scores.test)
                scores.concatenated.setdefault(system, {})[seed] = metrics
    return scores


def concatenated(out: Path, cells: list[Cell], test: Dataset) -> RetrievalMetrics:
    """Metrics of the normalised embeddings of ``cells`` side by side; kept in a file, and made anew when a cell is."""
    of = sha256(b"".join((cell.folder(out) / "result.json").read_bytes() for cell in cells)).hexdigest()
    first = cells[0]
    file = out / "concatenated" / first.data / first.system / f"seed{first.seed}.npz"
    if file.is_file():
        with np.load(file) as kept:
            if str(kept["of"]) == of:
                per_query = {name: kept[name] for name in METRICS}
                return RetrievalMetrics(json.loads(str(kept["values"])), per_query, {})
    parts = [np.load(cell.folder(out) / "test_embeddings.npy") for cell in cells]
    metrics = evaluate_embeddings(side_by_side(parts), test, ks=(1,))
    arrays: dict[str, Any] = {name: metrics.per_query[name] for name in METRICS}
    write_arrays(file, arrays | {"of": of, "values": json.dumps(dict(metrics))})
    return metrics


def side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of unit length next to each other: float32 k x [N, d] -> [N, k * d]; the evaluation normalises the whole."""
    return np.concatenate(
        [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in parts], axis=1
    )


def _test_items(file: Path) -> Dataset:
    with np.load(file) as kept:
        labels = kept["labels"]
        data = Dataset(
            kept["ids"].tolist(),
            labels,
            [str(label) for label in range(int(labels.max()) + 1)],
            np.full(len(labels), "test"),
            is_query=kept["is_query"],
            is_gallery=kept["is_gallery"],
        )
        data.name = (str(kept["name"]) if "name" in kept else "") or None
        return data

"""Rows and pairs of a table, from scores made by hand."""

import json
import math
from pathlib import Path

import numpy as np

from deepmetric.atomic import write_text
from deepmetric.benchmark.cells import Cell
from deepmetric.benchmark.compare import concatenated_pairs, concatenated_rows
from deepmetric.benchmark.open_data import Remembered
from deepmetric.benchmark.report import write_report
from deepmetric.benchmark.run_cell import keep_test_items
from deepmetric.benchmark.scores import Scores
from deepmetric.data import Dataset, FoldDataset
from deepmetric.evaluation import evaluate_embeddings
from deepmetric.evaluation.metrics import RetrievalMetrics


def scores(values: dict[str, list[float]], labels: list[int]) -> Scores:
    """MAP@R of each query, by system."""
    test = Dataset([str(i) for i in labels], np.array(labels), list("abcdefgh"), np.full(len(labels), "test"))
    concatenated = {}
    for system, per_query in values.items():
        metric = dict.fromkeys(("precision@1", "r_precision", "map@r"), float(np.nanmean(per_query)))
        concatenated[system] = {0: RetrievalMetrics(metric, {"map@r": np.array(per_query)}, {})}
    return Scores(concatenated=concatenated, test=test)


def test_one_test_class_with_positives_has_no_interval_over_classes():
    few = scores({"a": [0.5, 1.0, math.nan], "b": [0.2, 0.3, math.nan]}, [0, 0, 1])
    assert [row.classes for row in concatenated_rows(few)] == [None, None]
    (pair,) = concatenated_pairs(few)
    assert math.isnan(pair.p)
    assert not pair.differs


def test_of_many_systems_pairs_can_still_differ():
    labels = [c for c in range(8) for _ in range(2)]
    pairs = concatenated_pairs(scores({f"s{i}": [i / 24] * 16 for i in range(24)}, labels))
    assert len(pairs) == 276
    assert all(pair.differs for pair in pairs)


def test_a_partial_copy_is_called_so_in_the_report(tmp_path: Path):
    labels = np.repeat(np.arange(6), 4)
    splits = np.where(labels < 4, "train", "test")
    data = Dataset([str(i) for i in range(24)], labels, list("abcdef"), splits)
    data.name = "CUB-200-2011 (partial: 6 of 200 classes)"
    test = FoldDataset(lambda: Remembered(data), 0, 1).split("test")
    cell = Cell(0, 0, "cub", "ms")
    plan = {"description": "", "folds": 1, "seeds": [0], "data": ["cub"], "systems": ["ms"]}
    plan |= {"recipes": {"ms": ["systems/ms"]}, "changes": {"cub": {"ms": []}}}
    write_text(tmp_path / "plan.json", json.dumps(plan))
    found = evaluate_embeddings(np.random.default_rng(0).normal(size=(8, 3)), test, ks=(1,))
    result = {"cell": {"data": "cub", "system": "ms", "seed": 0, "fold": 0}, "test": dict(found)}
    result |= {
        "validation": None,
        "steps": 1,
        "seconds": {},
        "test_items": keep_test_items(test, "cub", tmp_path),
    }
    write_text(cell.folder(tmp_path) / "result.json", json.dumps(result))
    write_report(tmp_path)
    for name in ("report.md", "tables.tex"):
        assert data.name in (tmp_path / "report" / name).read_text()

"""Equality with the published reference values of the retrieval and clustering metrics.

The folder of case files is taken from GOLDEN_DIR. Our tie policy is the reference's ``negatives_first``.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmetric.evaluation import clustering_metrics, retrieval_metrics

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[3] / "shared" / "golden"))
RETRIEVAL = sorted(GOLDEN.glob("retrieval__*.json"))
CLUSTERING = sorted(GOLDEN.glob("clustering__*.json"))
NAMES = {"precision@1": "precision_at_1", "r_precision": "r_precision", "map@r": "map_at_r", "mrr": "mrr"}

pytestmark = [
    pytest.mark.usefixtures("any_way"),
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden values at {GOLDEN} (set GOLDEN_DIR)"),
]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf8"))


def number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def references(case: dict) -> dict[str, dict]:
    """similarity -> reference values."""
    named = {p["peer_name"]: p["value"] for p in case["parameters"]}
    found = {named["similarity"]: case["reference"]}
    return found | {key.removeprefix("reference_"): case[key] for key in case if key.startswith("reference_")}


@pytest.mark.parametrize("block_bytes", [2**26, 1], ids=["one-block", "small-blocks"])
@pytest.mark.parametrize("path", RETRIEVAL, ids=lambda p: p.stem)
def test_retrieval(path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepmetric.evaluation.neighbours.BLOCK_ROWS", 3)
    case = read(path)
    ks = next(p["value"] for p in case["parameters"] if p["peer_name"] == "K")
    gallery = {}
    if not case["gallery_is_query"]:
        gallery = {
            "gallery": np.array(case["gallery_embeddings"]),
            "gallery_labels": np.array(case["gallery_labels"]),
            "self_index": case["self_in_gallery"],
        }
    for similarity, reference in references(case).items():
        got = retrieval_metrics(
            np.array(case["query_embeddings"]),
            np.array(case["query_labels"]),
            **gallery,
            ks=ks,
            similarity=similarity,  # pyright: ignore[reportArgumentType]
            block_bytes=block_bytes,
        )
        want = reference["negatives_first"]
        for k, value in want["recall_at_k_answerable_queries"].items():
            assert got[f"recall@{k}"] == pytest.approx(number(value), abs=1e-9, nan_ok=True)
        for ours, theirs in NAMES.items():
            assert got[ours] == pytest.approx(number(want[theirs]), abs=1e-9, nan_ok=True), ours
        # Counting unanswerable queries as misses is the other convention; the counts lead from one to the
        # other.
        share = 1 - got["queries_without_positive"] / got["queries"]
        for k, value in want["recall_at_k_all_queries"].items():
            ours = got[f"recall@{k}"] * share if share else 0.0
            assert ours == pytest.approx(number(value), abs=1e-9)


@pytest.mark.parametrize("path", CLUSTERING, ids=lambda p: p.stem)
def test_clustering_of_a_given_assignment(path: Path) -> None:
    case = read(path)
    got = clustering_metrics(np.array(case["labels"]), np.array(case["cluster_assignment"]))
    assert got["nmi"] == pytest.approx(case["reference"]["nmi_arithmetic"], abs=1e-9)
    (ami,) = (value for name, value in case["peers"].items() if name.startswith("ami_arithmetic"))
    assert got["ami"] == pytest.approx(number(ami), abs=1e-9)


def test_there_are_cases() -> None:
    assert len(RETRIEVAL) >= 12
    assert len(CLUSTERING) >= 5


def test_torch_tensors_give_the_same_numbers() -> None:
    case = read(RETRIEVAL[-1])
    x, y = np.array(case["query_embeddings"]), np.array(case["query_labels"])
    assert retrieval_metrics(torch.tensor(x), torch.tensor(y)) == retrieval_metrics(x, y)

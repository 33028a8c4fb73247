"""FAISS indexes over unit vectors by inner product: exact, or approximate with a measured recall."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import faiss
import numpy as np

from deepmetric.errors import InputError

Kind = Literal["flat", "hnsw", "ivf"]

TARGET_RECALL = (
    0.95  # of the true ten nearest, on a sample of the indexed vectors; more effort is spent until then
)
MIN_IVF = (
    1000  # below, lists are too short to be worth leaving any out, and an exact scan takes well under 1 ms
)
POINTS_PER_LIST = 39  # what FAISS wants at least for training a list's centre


def build(x: np.ndarray, kind: Kind) -> tuple[Any, float]:
    """A FAISS index over unit rows ``[N, d]`` float32, and its recall of the ten nearest (1 for flat).

    - flat: every vector is compared; exact. The right one up to some 100,000 vectors.
    - hnsw: a graph (Malkov and Yashunin, 2018), M = 16, efConstruction = 200. Low latency for single queries.
    - ivf: inverted lists (Jegou et al., 2011), about 4 sqrt(N) of them. Builds faster than hnsw.

    How much of an approximate index is searched (efSearch, nprobe) is doubled until the recall, measured
    against an exact search, reaches 0.95.

    Raises:
        InputError: too few vectors for ivf.
    """
    count, dim = x.shape
    if kind == "flat":
        flat = faiss.IndexFlatIP(dim)
        flat.add(x)  # type: ignore[call-arg]
        return flat, 1.0
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 200
        graph.add(x)  # type: ignore[call-arg]

        def set_ef(value: int) -> None:
            graph.hnsw.efSearch = value

        return graph, _tune(graph, set_ef, _doubling(64, 1024), x)
    if count < MIN_IVF:
        raise InputError(
            f"an ivf index needs {MIN_IVF:,} vectors or more, there are {count:,}. Use kind flat: it is exact, and "
            "fast at this size."
        )
    lists = int(min(4 * count**0.5, count / POINTS_PER_LIST))
    inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    inverted.train(x)  # type: ignore[call-arg]
    inverted.add(x)  # type: ignore[call-arg]

    def set_nprobe(value: int) -> None:
        inverted.nprobe = value

    return inverted, _tune(inverted, set_nprobe, _doubling(4, lists), x)


def search(index: Any, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of the k nearest, each ``[Q, k]``; k is at most the number of vectors.

    Where an approximate search finds fewer (lists shorter than k, a graph in pieces) all vectors are
    compared.
    """
    scores, rows = index.search(x, k)
    short = np.flatnonzero((rows < 0).any(axis=1))
    if len(short):
        if hasattr(index, "nprobe"):
            everything = faiss.SearchParametersIVF(nprobe=index.nlist)  # type: ignore[call-arg]
            scores[short], rows[short] = index.search(x[short], k, params=everything)
        else:
            scores[short], rows[short] = faiss.downcast_index(index.storage).search(x[short], k)
    return scores, rows


def _doubling(start: int, stop: int) -> Iterable[int]:
    while start < stop:
        yield start
        start *= 2
    yield stop


def _tune(index: Any, put: Callable[[int], None], values: Iterable[int], x: np.ndarray) -> float:
    """Set the least of ``values`` that reaches the target; returns the recall reached."""
    k = min(11, len(x))  # a sampled vector finds itself, which does not count
    sample = x[np.random.default_rng(0).choice(len(x), size=min(256, len(x)), replace=False)]
    truth, _ = faiss.knn(sample, x, k, metric=faiss.METRIC_INNER_PRODUCT)
    recall = 1.0
    for value in values:
        put(value)
        scores, rows = index.search(sample, k)
        # By score, because copies of a vector may stand for each other.
        hits = ((scores >= truth[:, -1:] - 1e-6) & (rows >= 0)).sum(axis=1)
        recall = float((hits.clip(1) - 1).mean() / max(k - 1, 1)) if k > 1 else 1.0
        if recall >= TARGET_RECALL:
            break
    return recall

"""The plain definition of every metric, for the fast one to equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest


def _slow_metrics(
    similarity: np.ndarray, query_labels, gallery_labels, self_index, ks
) -> dict[str, np.ndarray]:
    """``similarity`` [N, M] in exact numbers; negatives first among equals; NaN without a positive."""
    names = [f"recall@{k}" for k in ks] + ["precision@1", "r_precision", "map@r", "mrr"]
    out = {name: np.full(len(query_labels), np.nan) for name in names}
    for i, label in enumerate(query_labels):
        order = [j for j in range(len(gallery_labels)) if j != self_index[i]]
        order.sort(key=lambda j: (-similarity[i, j], gallery_labels[j] == label))
        relevant = [gallery_labels[j] == label for j in order]
        r = sum(relevant)
        if r == 0:
            continue
        for k in ks:
            out[f"recall@{k}"][i] = any(relevant[:k])
        out["precision@1"][i] = relevant[0]
        out["r_precision"][i] = sum(relevant[:r]) / r
        out["map@r"][i] = sum(sum(relevant[: p + 1]) / (p + 1) for p in range(r) if relevant[p]) / r
        out["mrr"][i] = 1 / (1 + relevant.index(True))
    return out


@pytest.fixture(scope="session")
def slow_metrics() -> Callable[..., dict[str, np.ndarray]]:
    return _slow_metrics


@pytest.fixture(scope="module", params=["selection", "sort", "half the products"])
def any_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every way of ranking, whatever the size of the gallery."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "half the products":
            patch.setattr("deepmetric.evaluation.neighbours.MOST", 0)
            share = {"selection": 0, "sort": 10**9}[request.param]
            patch.setattr("deepmetric.evaluation.neighbours.SORT_SHARE", share)
        yield

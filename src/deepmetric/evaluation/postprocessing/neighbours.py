"""The nearest rows of unit vectors, exact, by FAISS."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepmetric.errors import InputError
from deepmetric.evaluation.inputs import as_embeddings
from deepmetric.evaluation.similarity import unit_rows


def unit(rows: Any, name: str) -> np.ndarray:
    """Float32 ``[N, d]`` rows of length one, checked as :func:`retrieval_metrics` checks them."""
    return np.ascontiguousarray(unit_rows(as_embeddings(rows, name)).float().cpu().numpy())


def nearest(
    query: np.ndarray, gallery: np.ndarray, k: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the ``k`` nearest gallery rows of each query, ``[N, k]``, nearest first.

    Args:
        own: ``[N]`` the row of each query in the gallery, left out of its list; -1 or None: it is not there.

    Raises:
        InputError: rows of different widths, fewer than ``k`` rows to be found, ``own`` of another length.
    """
    import faiss

    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            f"`query` has {query.shape[1]} columns and `gallery` {gallery.shape[1]}: one model must make both."
        )
    if own is not None and own.shape != (len(query),):
        raise InputError(f"`self_index` must be {len(query)} whole numbers, got shape {own.shape}.")
    if not 1 <= k <= len(gallery) - (own is not None):
        raise InputError(
            f"the {k} nearest were asked for; expected a number from 1 to the {len(gallery)} gallery rows"
            f"{' less the query itself' if own is not None else ''}."
        )
    if own is None:
        return faiss.knn(query, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    value, row = faiss.knn(query, gallery, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    # A query whose own row is not among its k + 1 nearest, as when many copies tie with it, loses the last.
    lost = row == own[:, None]
    lost[~lost.any(axis=1), -1] = True
    kept = ~lost
    return value[kept].reshape(-1, k), row[kept].reshape(-1, k)

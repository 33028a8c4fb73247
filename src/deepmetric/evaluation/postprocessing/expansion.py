"""Query expansion and database augmentation: a row becomes a mean of itself and its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepmetric.errors import InputError
from deepmetric.evaluation.postprocessing.neighbours import nearest, unit


def query_expansion(
    query: Any, gallery: Any = None, *, k: int = 5, alpha: float = 0.0, self_index: Any = None
) -> np.ndarray:
    r"""Each query replaced by :math:`q + \sum_{i \le k} \max(0, s_i)^\alpha g_i` over its k nearest gallery rows.

    s is the cosine of unit rows. ``alpha=0`` is average query expansion (Chum, Philbin, Sivic, Isard, Zisserman, "Total
    Recall", ICCV 2007), ``alpha > 0`` weighs near neighbours more (Radenović, Tolias, Chum, "Fine-tuning CNN
    Image Retrieval with No Human Annotation", TPAMI 2019; they take k = 50 and alpha = 3 against large galleries).
    Searching with the result is a second search of the same gallery; labels play no part.

    Args:
        query: ``[N, d]``.
        gallery: ``[M, d]``; None: the queries search among themselves, each without itself.
        k: neighbours that are added; few, where classes are small: from the first wrong one on they do harm.
        alpha: at least 0.
        self_index: ``[N]`` row of each query in ``gallery``, which is not its own neighbour; -1: not there.

    Returns:
        Unit rows, float32 ``[N, d]``.

    Raises:
        InputError: ``alpha`` below 0, ``k`` beyond the gallery, and what :func:`retrieval_metrics` refuses.

    >>> query_expansion([[2.0, 0.0]], [[0.6, 0.8], [0.0, -1.0]], k=1)
    array([[0.8944272, 0.4472136]], dtype=float32)
    """
    if alpha < 0:
        raise InputError(f"`alpha` of query expansion is {alpha}; expected 0 (plain mean) or more.")
    q = unit(query, "query")
    if gallery is None:
        g, own = q, np.arange(len(q))
    else:
        g, own = unit(gallery, "gallery"), None if self_index is None else np.asarray(self_index)
    value, row = nearest(q, g, k, own)
    weight = np.maximum(value, 0) ** alpha
    expanded = q.copy()
    for place in range(k):  # never an [N, k, d] array
        expanded += weight[:, place, None] * g[row[:, place]]
    return unit(expanded, "query")


def database_augmentation(gallery: Any, *, k: int = 5, alpha: float = 0.0) -> np.ndarray:
    """Each gallery row replaced by its mean with its k nearest others: query expansion on the side of the gallery.

    Turcot and Lowe, "Better Matching with Fewer Features", ICCV workshops 2009; weights as in :func:`query_expansion`
    (Gordo, Almazán, Revaud, Larlus, IJCV 2017). Done once, before any query comes. When the queries are part of the
    gallery, as where a test set searches itself, a query's own row has entered those of its neighbours: such
    figures flatter a little.

    Args:
        gallery: ``[M, d]``.
        k, alpha: as of :func:`query_expansion`.

    Returns:
        Unit rows, float32 ``[M, d]``.
    """
    return query_expansion(gallery, k=k, alpha=alpha)

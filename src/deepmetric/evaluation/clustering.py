"""Clustering quality: k-means into as many clusters as there are classes, then mutual information with the
labels.

NMI is the mutual information over the arithmetic mean of the entropies (scikit-learn's default, and the form
of most published tables; the geometric mean differs in the third digit). AMI corrects for chance agreement.
k-means starts at random, so either moves by about half a point between seeds; retrieval metrics do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deepmetric.errors import InputError
from deepmetric.evaluation.inputs import as_embeddings

ITERATIONS = 20  # what nearly every published system uses, and FAISS's former default


def cluster(embeddings: Any, k: int, seed: int = 0) -> np.ndarray:
    """Euclidean k-means by FAISS, 20 iterations over all points: ``[N, d]`` -> int64 ``[N]``.

    Raises:
        InputError: NaN or infinite embeddings, no rows, ``k`` below 1 or beyond their number.
    """
    import faiss

    x = as_embeddings(embeddings, "embeddings").cpu().numpy()
    if not 1 <= k <= len(x):
        raise InputError(f"{k} clusters were asked for; expected 1 to {len(x)}, the number of embeddings.")
    # By a power of two, which rounds nothing: FAISS squares in float32, and where that overflows ends the process.
    x = np.ldexp(x, -np.frexp(np.abs(x).max())[1])
    x = np.ascontiguousarray(x, dtype=np.float32)
    kmeans = faiss.Kmeans(
        x.shape[1],
        k,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # silences a warning: classes in metric learning are small
        max_points_per_centroid=len(x),  # no subsampling
    )
    kmeans.train(x)
    assert kmeans.index is not None
    return kmeans.index.search(x, 1)[1][:, 0].astype(np.int64)


def clustering_metrics(labels: np.ndarray, assignment: np.ndarray) -> dict[str, float]:
    """``nmi`` (arithmetic mean of the entropies) and ``ami`` of a given clustering, both over ``[N]``."""
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    return {
        "nmi": float(normalized_mutual_info_score(labels, assignment)),
        "ami": float(adjusted_mutual_info_score(labels, assignment)),
    }

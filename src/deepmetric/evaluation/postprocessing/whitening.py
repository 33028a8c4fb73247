"""PCA whitening, learned from training embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepmetric.errors import InputError
from deepmetric.evaluation.postprocessing.neighbours import unit


class Whitening:
    """Centred, decorrelated and scaled to equal variance along the principal axes, then unit rows again.

    Jégou and Chum, "Negative Evidences and Co-occurences in Image Retrieval: the Benefit of PCA and Whitening",
    ECCV 2012. scikit-learn's PCA does the work.

    Args:
        training: ``[N, d]`` embeddings to learn from: of training items, never of those that are tested.
        dim: axes that are kept; None: as many as there are. Axes without variance are dropped, because
            whitening would blow up their rounding errors.

    Raises:
        InputError: ``dim`` beyond the width or the number of rows, rows that are all alike; when called, rows of
            another width.
    """

    def __init__(self, training: Any, dim: int | None = None) -> None:
        from sklearn.decomposition import PCA

        x = unit(training, "training").astype(np.float64)
        most = min(x.shape)
        if dim is not None and not 1 <= dim <= most:
            raise InputError(
                f"`dim` of whitening is {dim}; expected 1 to {most}, the width or the number of training rows."
            )
        if not np.ptp(x, axis=0).max() > 0:
            raise InputError(
                f"whitening learns axes along which rows differ; the {len(x)} training rows are all alike."
            )
        pca: Any = PCA(n_components=dim, whiten=True, svd_solver="full").fit(x)
        variance = pca.explained_variance_
        # Variances below this are rounding of float32 rows.
        kept = variance > variance[0] * np.finfo(np.float32).eps
        self._mean = pca.mean_
        self._axes = (pca.components_[kept] / np.sqrt(variance[kept])[:, None]).T

    def __call__(self, rows: Any) -> np.ndarray:
        """``[N, d]`` -> whitened unit rows, float32 ``[N, dim]``."""
        x = unit(rows, "rows")
        if x.shape[1] != len(self._mean):
            raise InputError(
                f"`rows` have {x.shape[1]} columns, the training rows had {len(self._mean)}: one model must make both."
            )
        return unit((x - self._mean) @ self._axes, "rows")

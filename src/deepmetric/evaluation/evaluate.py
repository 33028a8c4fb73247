"""A model's metrics on a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from deepmetric.data import Dataset
from deepmetric.errors import InputError
from deepmetric.evaluation.embed import device_of, embed_dataset
from deepmetric.evaluation.metrics import RetrievalMetrics, retrieval_metrics
from deepmetric.evaluation.similarity import Similarity


def evaluate_model(
    model: nn.Module,
    dataset: Dataset,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    similarity: Similarity = "cosine",
    clustering: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    device: str | torch.device | None = None,
) -> RetrievalMetrics:
    """:func:`~deepmetric.evaluation.retrieval_metrics` of a model on a data set that is already one split.

    Queries are the items with ``is_query``, the gallery those with ``is_gallery``; an item that is both is
    left out of its own ranking, by index. ``per_query`` follows the order of the queries in the data set.

    Raises:
        InputError: no query or no gallery item, and all that :func:`retrieval_metrics` and
            :func:`embed_dataset` raise.
    """
    if not dataset.is_query.any() or not dataset.is_gallery.any():
        raise InputError(
            f"An evaluation needs queries and a gallery; of {len(dataset)} items {dataset.is_query.sum()} are queries "
            f"and {dataset.is_gallery.sum()} are in the gallery. Look at the table's columns is_query and is_gallery."
        )
    dataset = dataset.subset(dataset.is_query | dataset.is_gallery)
    query, gallery = dataset.is_query, dataset.is_gallery
    x = torch.from_numpy(
        embed_dataset(
            model, dataset, batch_size=batch_size, workers=workers, progress=progress, device=device
        )
    )
    place = device_of(model) if device is None else torch.device(device)
    if place.type == "cuda":  # other accelerators lack float64
        x = x.to(place)
    options = {
        "ks": ks,
        "similarity": similarity,
        "clustering": clustering,
        "bootstrap": bootstrap,
        "seed": seed,
        "ids": [dataset.ids[i] for i in np.flatnonzero(query)],
    }
    if query.all() and gallery.all():
        return retrieval_metrics(x, dataset.labels, **options)
    row = np.where(gallery, np.cumsum(gallery) - 1, -1)  # of each item in the gallery
    return retrieval_metrics(
        x[query],
        dataset.labels[query],
        x[gallery],
        dataset.labels[gallery],
        self_index=row[query],
        **options,
    )

"""A model's metrics on a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from deepmetric.data import Dataset
from deepmetric.errors import InputError
from deepmetric.evaluation.embed import embed_dataset
from deepmetric.evaluation.metrics import RetrievalMetrics, retrieval_metrics
from deepmetric.evaluation.postprocessing.chain import Chain
from deepmetric.models.embed import device_of


def evaluate_model(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    device: str | torch.device | None = None,
    **options: Any,
) -> RetrievalMetrics:
    """:func:`~deepmetric.evaluation.retrieval_metrics` of a model on a data set that is already one split.

    Args:
        model, dataset, batch_size, workers, progress, device: as of
            :func:`~deepmetric.evaluation.embed_dataset`.
        options: those of :func:`evaluate_embeddings`.

    Raises:
        InputError: what :func:`evaluate_embeddings` and :func:`embed_dataset` raise.
    """
    x, dataset = embed_searched(
        model, dataset, batch_size=batch_size, workers=workers, progress=progress, device=device
    )
    return evaluate_embeddings(x, dataset, **options)


def embed_searched(
    model: nn.Module, dataset: Dataset, *, device: str | torch.device | None = None, **options: Any
) -> tuple[torch.Tensor, Dataset]:
    """What :func:`evaluate_embeddings` takes: embeddings of the items that are queries or in the gallery, and these.

    Args:
        options: those of :func:`~deepmetric.evaluation.embed_dataset`.
    """
    dataset = searched(dataset)
    x = torch.from_numpy(embed_dataset(model, dataset, device=device, **options))
    place = device_of(model) if device is None else torch.device(device)
    if place.type == "cuda":  # other accelerators lack float64
        x = x.to(place)
    return x, dataset


def searched(dataset: Dataset) -> Dataset:
    """The items that are queries or in the gallery.

    Raises:
        InputError: no query or no gallery item.
    """
    if not dataset.is_query.any() or not dataset.is_gallery.any():
        raise InputError(
            f"An evaluation needs queries and a gallery; of {len(dataset)} items {dataset.is_query.sum()} are queries "
            f"and {dataset.is_gallery.sum()} are in the gallery. Look at the table's columns is_query and is_gallery."
        )
    return dataset.subset(dataset.is_query | dataset.is_gallery)


def evaluate_embeddings(
    embeddings: np.ndarray | torch.Tensor, dataset: Dataset, *, chain: Chain | None = None, **options: Any
) -> RetrievalMetrics:
    """Metrics of the embeddings ``[N, d]`` of a data set's items, in their order.

    Queries are the items with ``is_query``, the gallery those with ``is_gallery``; an item that is both is
    left out of its own ranking, by index. ``per_query`` follows the order of the queries in the data set.

    Args:
        chain: post-processing between the embeddings and the ranking.
        options: ``ks``, ``similarity``, ``clustering``, ``bootstrap``, ``seed`` of :func:`retrieval_metrics`; ``ks``
            left out or None: those of the data set.

    Raises:
        InputError: embeddings of another number than the items; what :func:`retrieval_metrics` raises, and the steps
            of ``chain``.
    """
    if len(embeddings) != len(dataset):
        raise InputError(
            f"there are {len(embeddings)} embeddings of {len(dataset)} items; expected one of each."
        )
    query, gallery = dataset.is_query, dataset.is_gallery
    if options.get("ks") is None:
        options["ks"] = dataset.ks
    options["ids"] = [dataset.ids[i] for i in np.flatnonzero(query)]
    one_set = bool(query.all() and gallery.all())
    q = embeddings if one_set else embeddings[query]
    g = None if one_set else embeddings[gallery]
    row = np.where(gallery, np.cumsum(gallery) - 1, -1)[query]  # of each query in the gallery
    if chain is not None:
        q, g, changed = chain.apply(q, g, row)
        options |= changed
    if g is None:
        return retrieval_metrics(q, dataset.labels, **options)
    return retrieval_metrics(q, dataset.labels[query], g, dataset.labels[gallery], self_index=row, **options)

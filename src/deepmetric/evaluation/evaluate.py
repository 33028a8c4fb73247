"""A model's metrics on a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from deepmetric.data import Dataset, make_loader
from deepmetric.errors import InputError
from deepmetric.evaluation.metrics import RetrievalMetrics, retrieval_metrics
from deepmetric.evaluation.similarity import Similarity


def embed_dataset(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Embeddings of all items in order, float32 ``[N, d]``.

    The images pass through ``model.preprocessing``, as they do wherever the model is used; a model without it
    gets the data set's own transform. The model embeds in evaluation mode and is left in the mode it came in.

    Args:
        device: where to compute; None: where the model is. The model is moved there and stays.
        progress: a progress bar on stderr.

    Raises:
        InputError: no items, or images that cannot be read or do not make a batch.
    """
    from tqdm import tqdm

    if not len(dataset):
        raise InputError("There is nothing to embed: the data set has no items.")
    preprocessing = getattr(model, "preprocessing", None)
    if preprocessing is not None:
        dataset = dataset.with_transform(preprocessing.transform())
    if device is not None:
        model.to(device)
    place = _device(model)
    mode = {module: module.training for module in model.modules()}
    rows: list[np.ndarray] = []
    model.eval()
    try:
        with (
            torch.inference_mode(),
            tqdm(total=len(dataset), unit="item", desc="embed", disable=not progress) as bar,
        ):
            for images, _, indices in make_loader(dataset, batch_size=batch_size, workers=workers):
                rows.append(model(images.to(place)).float().cpu().numpy())
                bar.update(len(indices))
    finally:
        for module, training in mode.items():
            module.training = training
    return np.concatenate(rows)


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
    place = _device(model)
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


def _device(model: nn.Module) -> torch.device:
    return next(iter(model.parameters()), torch.empty(0)).device

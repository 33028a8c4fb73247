"""A data set through a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from deepmetric.data import Dataset, make_loader
from deepmetric.errors import InputError
from deepmetric.models import EmbeddingModel
from deepmetric.models.embed import evaluating, forward_in_parts

if TYPE_CHECKING:
    from tqdm import tqdm


def embed_dataset(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool | tqdm[Any] = False,
) -> np.ndarray:
    """Embeddings of all items in order, float32 ``[N, d]``.

    The images pass through ``model.preprocessing``, as they do wherever the model is used; a plain module
    without it gets what the data set's own transform makes. The model embeds in evaluation mode; each
    module's mode and the device are put back.

    Args:
        batch_size: images in one pass; halved for a batch that does not fit in the accelerator's memory.
        workers: processes that read and resize images; 0: threads of this process, as in ``model.embed``.
        device: where to compute; None: where the model is.
        progress: a progress bar on stderr, or one to be moved on by the number of items.

    Raises:
        InputError: no items, or images that cannot be read or do not make a batch.
    """
    if not len(dataset):
        raise InputError("There is nothing to embed: the data set has no items.")
    from tqdm import tqdm

    rows: list[np.ndarray] = []
    with ExitStack() as stack:
        if isinstance(progress, bool):
            bar = tqdm(total=len(dataset), desc="embedding", unit="image", disable=not progress)
            progress = stack.enter_context(bar)
        for part in _parts(model, dataset, batch_size, workers, device):
            rows.append(part)
            progress.update(len(part))
    return np.concatenate(rows)


def _parts(
    model: nn.Module, dataset: Dataset, batch_size: int, workers: int, device: str | torch.device | None
) -> Iterator[np.ndarray]:
    if workers == 0 and isinstance(model, EmbeddingModel):
        # Some batches a call: it reads ahead inside a call only, and the bar moves on between calls.
        step = 4 * max(1, batch_size)
        for start in range(0, len(dataset), step):
            items = dataset.subset(np.arange(start, min(start + step, len(dataset))))
            yield model.embed(items, batch_size=batch_size, device=device)
        return
    preprocessing = getattr(model, "preprocessing", None)
    if preprocessing is not None:
        dataset = dataset.with_transform(preprocessing.transform())
    with evaluating(model, device) as target, torch.inference_mode():
        for images, _, _ in make_loader(dataset, batch_size=batch_size, workers=workers):
            yield forward_in_parts(model, images, target).float().cpu().numpy()

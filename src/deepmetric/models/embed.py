"""Many images through a model, in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.models.inputs import EmbedInput, Images

if TYPE_CHECKING:
    from deepmetric.models.embedding import EmbeddingModel


def embed(
    model: EmbeddingModel,
    inputs: EmbedInput,
    *,
    batch_size: int,
    device: str | torch.device | None,
    progress: bool,
) -> np.ndarray:
    """:meth:`EmbeddingModel.embed`."""
    from tqdm import tqdm

    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1")
    images = Images(inputs)
    embeddings = np.empty((len(images), model.embedding_dim), dtype=np.float32)
    bar = tqdm(total=len(images), desc="embedding", unit="image", disable=not progress)
    with bar, evaluating(model, device) as target, torch.inference_mode():
        for start, batch in _batches(images, model.preprocessing.transform(), batch_size):
            rows = forward_in_parts(model, batch, target)
            embeddings[start : start + len(batch)] = rows.float().cpu().numpy()
            bar.update(len(batch))
    return embeddings


def forward_in_parts(
    model: Callable[[Tensor], Tensor], batch: Tensor, device: torch.device | None = None
) -> Tensor:
    """``model(batch)``, in halves of halves when the accelerator's memory does not hold the whole."""
    try:
        return model(batch.to(device))
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Out of the except block, because the traceback there keeps the failed attempt's tensors alive.
    half = len(batch) // 2
    return torch.cat([forward_in_parts(model, part, device) for part in (batch[:half], batch[half:])])


def _batches(
    images: Images, transform: Callable[[Tensor], Tensor], batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """(position of the first, uint8 [B, 3, size, size]); the next batch is decoded while the model works on this one.

    Threads, because decoding and resizing let go of Python's lock, and inputs then need not be sent to processes.
    """

    def load(i: int) -> Tensor:
        return transform(images.read(i))

    starts = range(0, len(images), batch_size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting = iter(())
        for start in [*starts, None]:
            now = waiting
            if start is not None:
                waiting = pool.map(load, range(start, min(start + batch_size, len(images))))
            loaded = list(now)
            if loaded:
                yield (len(images) if start is None else start) - len(loaded), torch.stack(loaded)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU when it has none."""
    return next(iter(model.parameters()), torch.empty(0)).device


@contextmanager
def evaluating(model: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """``model`` in evaluation mode on ``device``; each module's mode and the device are put back."""
    home = device_of(model)
    target = home if device is None else torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        model.to(target)
        yield target
    finally:
        for module, training in modes:
            module.training = training
        model.to(home)

"""The pass over all files that finds the broken ones before training does."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
from tqdm import tqdm

from deepmetric.data.dataset import Dataset
from deepmetric.data.images import UnreadableImage
from deepmetric.errors import InputError

PART = 4096


def leave_out_unreadable(dataset: Dataset) -> None:
    """Decode every item; shorten ``dataset`` to those that can be read and list the others in its ``skipped``. A whole
    benchmark is called partial then.

    Raises:
        InputError: not one item can be read.
    """

    def reason(i: int) -> str | None:
        try:
            dataset.read(i)
        except UnreadableImage as error:
            return f"{error.path}: {error.reason}"
        return None

    # Decoders release the interpreter's lock. A part at a time: the pool's record of an item takes 2 kB.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = (range(start, min(start + PART, len(dataset))) for start in range(0, len(dataset), PART))
        checked = chain.from_iterable(pool.map(reason, part) for part in parts)
        reasons = list(tqdm(checked, "checking images", len(dataset), leave=False, disable=None))
    skipped = [text for text in reasons if text is not None]
    if not skipped:
        return
    if len(skipped) == len(dataset):
        raise InputError(f"none of the {len(dataset)} images can be read; the first is {skipped[0]}")
    if dataset.name is not None and " (" not in dataset.name:
        dataset.name += f" (partial: {len(dataset) - len(skipped):,} of {len(dataset):,} images)"
    dataset.__dict__.update(dataset.subset(np.array([text is None for text in reasons])).__dict__)
    dataset.skipped = skipped

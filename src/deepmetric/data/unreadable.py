"""The pass over all files that finds the broken ones before training does."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from deepmetric.data.dataset import Dataset
from deepmetric.data.images import UnreadableImage
from deepmetric.errors import InputError


def leave_out_unreadable(dataset: Dataset) -> None:
    """Decode every item; shorten ``dataset`` to those that can be read and list the others in its ``skipped``.

    Raises:
        InputError: not one item can be read.
    """

    def reason(i: int) -> str | None:
        try:
            dataset.read(i)
        except UnreadableImage as error:
            return f"{error.path}: {error.reason}"
        return None

    # Decoders release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = pool.map(reason, range(len(dataset)))
        reasons = list(tqdm(checked, "checking images", len(dataset), leave=False, disable=None))
    skipped = [text for text in reasons if text is not None]
    if not skipped:
        return
    if len(skipped) == len(dataset):
        raise InputError(f"none of the {len(dataset)} images can be read; the first is {skipped[0]}")
    dataset.__dict__.update(dataset.subset(np.array([text is None for text in reasons])).__dict__)
    dataset.skipped = skipped

"""Cross-validation on classes: the training classes in parts, one of which validates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from deepmetric.data.dataset import Dataset
from deepmetric.errors import InputError


class FoldDataset(Dataset):
    """One fold of a class-disjoint cross-validation.

    The training classes, which are all that are not tested on (those of ``train`` and ``val``), are cut in the order
    of ``classes`` into ``folds`` contiguous parts: part f holds the classes from ``f * C // folds`` to before
    ``(f + 1) * C // folds`` of C. Part ``fold`` validates, the others train; test items stay as they are.

    As in Musgrave et al., "A Metric Learning Reality Check" (ECCV 2020), whose code numbers the folds otherwise and,
    where C is no multiple of ``folds``, leaves some classes out of every validation part; here each is in one.

    Args:
        data: gives the items, all splits.
        fold: which part validates, from 0.
        folds: number of parts; 1: no cross-validation, all training classes train and none validates.

    Raises:
        InputError: no such fold, fewer training classes than folds, or a class that is trained and tested on.
    """

    def __init__(self, data: Callable[[], Dataset], fold: int, folds: int = 4) -> None:
        if folds < 1 or not 0 <= fold < folds:
            raise InputError(
                f"FoldDataset: fold={fold} of folds={folds}; expected folds >= 1, 0 <= fold < folds"
            )
        source = data()
        tested = source.splits == "test"
        classes = np.unique(source.labels[~tested])
        both = np.intersect1d(classes, source.labels[tested])
        if len(both):
            names = ", ".join(source.classes[label] for label in both[:5])
            raise InputError(
                f"FoldDataset: {len(both)} classes are trained and tested on ({names} ...). Cross-validation on "
                "classes needs test classes that training never sees: mend the splits"
            )
        if len(classes) < folds:
            raise InputError(
                f"FoldDataset: {len(classes)} training classes cannot be cut into {folds} parts. Ask for fewer folds"
            )
        start, stop = (part * len(classes) // folds for part in (fold, fold + 1))
        splits = np.full(len(source), "train", dtype="<U5")
        if folds > 1:
            splits[np.isin(source.labels, classes[start:stop])] = "val"
        splits[tested] = "test"
        super().__init__(
            source.ids,
            source.labels,
            source.classes,
            splits,
            is_query=source.is_query,
            is_gallery=source.is_gallery,
            categories=source.categories,
        )
        self.skipped, self.ks, self.name = source.skipped, source.ks, source.name
        self._source = source

    def load(self, row: int) -> Tensor:
        return self._source.read(row)

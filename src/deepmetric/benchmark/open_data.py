"""Data sets that stay open, with their decoded images, from one cell to the next."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepmetric.benchmark.plan import as_arguments
from deepmetric.data import Dataset, FoldDataset
from deepmetric.errors import InputError
from deepmetric.evaluation.evaluate import searched
from deepmetric.training import Recipe, Run
from deepmetric.training.parse import parse_recipe

KEEP_BYTES = 2 << 30  # of decoded images, for each data set and worker


class OpenData:
    """Data sets by what their recipe says, opened once in this process."""

    def __init__(self) -> None:
        self._open: dict[str, Dataset] = {}

    def recipe(self, written: dict[str, Any], file: Path) -> Recipe:
        """The recipe of a cell's file, on data that is open already."""
        recipe, _ = parse_recipe(["--config", str(file)])
        return replace(recipe, data=lambda: self._fold(written))

    def refuse_changed(self, folder: Path, written: dict[str, Any]) -> None:
        """See that the run in ``folder`` had the items that it would have now.

        Raises:
            InputError: other items, classes or splits.
        """
        if changed := Run(folder).changed_data(self._fold(written)):
            raise InputError(f"{changed}. Put them back as they were, or name another --out.")

    def _fold(self, written: dict[str, Any]) -> FoldDataset:
        fold = written["data"]["init_args"]
        data = self._data({**written, "data": fold["data"]})
        return FoldDataset(lambda: data, fold["fold"], fold["folds"])

    def check(
        self, wanted: Iterable[tuple[str, dict[str, Any]]], folds: int, measured: Sequence[str]
    ) -> None:
        """Open each data set before the work begins, and see that its folds can be trained and measured.

        Args:
            wanted: names of data sets, with recipes that are not on a fold yet.
            folds: parts to cut the training classes into.
            measured: the splits that models are evaluated on.

        Raises:
            InputError: a data set that cannot be opened, has too few classes for the folds, or lacks a split.
        """
        for name, written in wanted:
            if _key(written) in self._open:
                continue
            try:
                data = self._data(written)
                fold = FoldDataset(lambda data=data: data, 0, folds)
                for split in measured:
                    searched(fold.split(split))
            except (InputError, OSError) as error:
                raise InputError(f"the data set {name} cannot be used: {error}") from error

    def _data(self, written: dict[str, Any]) -> Dataset:
        key = _key(written)
        if key not in self._open:
            recipe, _ = parse_recipe(as_arguments(written))
            # Worker processes of a loader would each keep images of their own and lose them when they end.
            self._open[key] = Remembered(recipe.data()) if recipe.training.workers == 0 else recipe.data()
        return self._open[key]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is handed to another process: it opens files, and keeps images, of its own."""
        return {"_open": {}}


def _key(written: dict[str, Any]) -> str:
    return json.dumps(written["data"], sort_keys=True)


class Remembered(Dataset):
    """The same items; an image that was read once is not decoded again, as long as ``keep_bytes`` hold them.

    A cell of half a minute would otherwise spend much of it on decoding what the cell before has decoded.
    """

    def __init__(self, data: Dataset, keep_bytes: int = KEEP_BYTES) -> None:
        super().__init__(
            data.ids,
            data.labels,
            data.classes,
            data.splits,
            is_query=data.is_query,
            is_gallery=data.is_gallery,
            categories=data.categories,
        )
        self.skipped, self.ks, self.name = data.skipped, data.ks, data.name
        self._data = data
        self._kept: dict[int, Tensor] = {}
        self._left = [keep_bytes]  # in a list, because subsets and splits are copies of this and share it

    def load(self, row: int) -> Tensor:
        kept = self._kept.get(row)
        if kept is None:
            kept = self._data.read(row)
            if torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2]):
                kept = kept[:1].clone()  # grey: a third of the memory
            if kept.nbytes <= self._left[0]:
                self._left[0] -= kept.nbytes
                self._kept[row] = kept
        # A copy, because a transform may write into its image.
        return kept.expand(3, -1, -1).clone()

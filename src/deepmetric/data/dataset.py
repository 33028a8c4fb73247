"""Labelled items: what every source gives and every later stage takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import copy
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepmetric.data.splits import SPLITS
from deepmetric.errors import InputError, did_you_mean


class Item(NamedTuple):
    """One item as the loader gets it."""

    image: Tensor  # uint8 [3, H, W], or what the transform makes of it
    label: int  # index into Dataset.classes
    # position in the dataset it was taken from; hides tuple.index, which nobody needs here
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]


class Dataset(torch.utils.data.Dataset[Item]):
    """N labelled images with stable ids, each in one split.

    A source subclasses this, scans itself in ``__init__`` and implements :meth:`load`. Subsets and splits are views:
    they share the source, keep its ``classes`` and number their own items from 0.

    Attributes:
        ids: N unique names, the same on every machine and in every subset.
        labels: int64 [N], indices into ``classes``.
        classes: class names; the same list in every subset (but for :meth:`with_classes_renumbered`).
        splits: str [N], ``"train"``, ``"val"`` or ``"test"``.
        is_query, is_gallery: bool [N]; both all True when query and gallery are one set.
        categories: str [N], or None when the source has none.
        transform: applied to the uint8 [3, H, W] image by ``dataset[i]``, never by :meth:`read`.
        skipped: ``"path: reason"`` of each unreadable file left out (only with ``skip_unreadable=True``).
        name: what a report may call the data; a benchmark's name only where the whole benchmark is there.
        ks: the K of Recall@K that are customary for the data.
    """

    name: str | None = None
    ks: tuple[int, ...] = (1, 2, 4, 8)

    def __init__(
        self,
        ids: Sequence[str],
        labels: np.ndarray,
        classes: Sequence[str],
        splits: np.ndarray,
        *,
        is_query: np.ndarray | None = None,
        is_gallery: np.ndarray | None = None,
        categories: np.ndarray | None = None,
    ) -> None:
        everyone = np.ones(len(ids), dtype=bool)
        self.ids: list[str] = list(ids)
        self.labels: np.ndarray = np.asarray(labels, dtype=np.int64)
        self.classes: list[str] = list(classes)
        self.splits: np.ndarray = np.asarray(splits)
        self.is_query: np.ndarray = everyone if is_query is None else np.asarray(is_query, dtype=bool)
        self.is_gallery: np.ndarray = everyone if is_gallery is None else np.asarray(is_gallery, dtype=bool)
        self.categories: np.ndarray | None = categories
        self.transform: Callable[[Tensor], Tensor] | None = None
        self.skipped: list[str] = []
        self._rows = np.arange(len(ids))  # position of each item in the source, for load()

    def load(self, row: int) -> Tensor:
        """The image at position ``row`` of the whole source: uint8 [3, H, W] RGB."""
        raise NotImplementedError(f"{type(self).__name__} must implement load(row)")

    def read(self, i: int) -> Tensor:
        """Image i, uint8 [3, H, W] RGB in 0-255, without the transform.

        Raises:
            UnreadableImage: the file is broken; the message names it and the way to skip such files.
        """
        return self.load(int(self._rows[i]))

    def __getitem__(self, i: int) -> Item:
        image = self.read(i)
        return Item(image if self.transform is None else self.transform(image), int(self.labels[i]), int(i))

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """The items at ``indices`` (positions, or a bool mask [N]), in that order, with the same ``classes``."""
        chosen = np.asarray(indices)
        if chosen.dtype != bool:
            chosen = chosen.astype(np.int64)
        chosen = np.arange(len(self))[chosen]  # negative positions resolved, wrong ones refused
        view = copy(self)
        view.ids = [self.ids[i] for i in chosen]
        for name in ("labels", "splits", "is_query", "is_gallery", "_rows"):
            setattr(view, name, getattr(self, name)[chosen])
        view.categories = None if self.categories is None else self.categories[chosen]
        return view

    def split(self, name: str) -> Dataset:
        """The items of split ``name``.

        Raises:
            InputError: there is no item in that split; the message names the splits there are.
        """
        chosen = self.splits == name
        if not chosen.any():
            there = self._split_names()
            raise InputError(
                f"no split {name!r}: the data has {', '.join(there) or 'no items'}.{did_you_mean(name, there)}"
            )
        return self.subset(chosen)

    def with_classes_renumbered(self) -> Dataset:
        """The same items with ``classes`` of those alone that have an item here, so labels are 0 ... C - 1.

        For a loss with a proxy for each training class: classes of other splits must not get one.
        """
        present, labels = np.unique(self.labels, return_inverse=True)
        view = copy(self)
        view.classes = [self.classes[label] for label in present]
        view.labels = labels.astype(np.int64)
        return view

    def with_transform(self, transform: Callable[[Tensor], Tensor] | None) -> Dataset:
        """The same items, seen through ``transform``."""
        view = copy(self)
        view.transform = transform
        return view

    def shared_classes(self) -> dict[tuple[str, str], list[str]]:
        """For each pair of splits that share classes, their names; empty when the splits are class-disjoint."""
        present = {name: set(self.labels[self.splits == name].tolist()) for name in self._split_names()}
        common = {(a, b): sorted(present[a] & present[b]) for a, b in combinations(present, 2)}
        return {pair: [self.classes[label] for label in labels] for pair, labels in common.items() if labels}

    def digest(self) -> str:
        """A hash of which items these are, in which classes and splits; not of their images."""
        digest = hashlib.sha256()
        for name, label, split in zip(self.ids, self.labels, self.splits):
            digest.update(json.dumps([name, self.classes[label], str(split)]).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """The name where there is one, one line a split (items, classes), then whether the splits share classes."""
        lines = []
        for name in self._split_names():
            chosen = self.splits == name
            classes = len(np.unique(self.labels[chosen]))
            line = f"{name}: {_many(int(chosen.sum()), 'item')}, {_many(classes, 'class', 'classes')}"
            query, gallery = self.is_query[chosen], self.is_gallery[chosen]
            if not (query.all() and gallery.all()):
                line += f", {_many(int(query.sum()), 'query', 'queries')}, {gallery.sum():,} in the gallery"
            lines.append(line)
        shared = self.shared_classes()
        for (a, b), names in shared.items():
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"{a} and {b} share {_many(len(names), 'class', 'classes')}: {some}")
        if not shared and len(lines) > 1:
            lines.append("no class is in two splits")
        if self.name is not None:
            lines.insert(0, self.name)
        if self.skipped:
            lines.append(f"{_many(len(self.skipped), 'unreadable file')} left out")
        return "\n".join(lines)

    def _split_names(self) -> list[str]:
        there = set(np.unique(self.splits).tolist())
        return [name for name in SPLITS if name in there]


def _many(number: int, one: str, more: str = "") -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"

"""What a copy of a benchmark holds, beside what was published: only a whole copy may bear the benchmark's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deepmetric.errors import InputError

Figures = Mapping[
    str, int
]  # "images", "classes" and, where query and gallery are apart, "queries", "gallery"


class Listed(NamedTuple):
    """N images as a benchmark's own lists name them, whether or not their files are there."""

    ids: list[str]  # N paths as in the lists
    files: list[str]  # N paths under the root
    labels: np.ndarray  # int64 [N], indices into classes
    classes: list[str]
    splits: np.ndarray  # str [N], "train" or "test"
    is_query: np.ndarray | None = None  # bool [N]; None: query and gallery are one set
    is_gallery: np.ndarray | None = None
    categories: np.ndarray | None = None  # str [N]
    boxes: np.ndarray | None = None  # float32 [N, 4]: x_1, y_1, x_2, y_2 in pixels


class NotTheBenchmark(InputError):
    """A copy that may not bear the benchmark's name; the message says what is missing and how to mend it."""


class Check(NamedTuple):
    """The figures of a copy beside the published ones.

    Attributes:
        benchmark: the benchmark's name.
        published: split -> figures.
        found: the same of the images that are listed and there.
        problems: what keeps the copy from being the benchmark, a line each; none: it is.
    """

    benchmark: str
    published: Mapping[str, Figures]
    found: Mapping[str, Figures]
    problems: list[str]

    def figures(self) -> list[str]:
        """``"train: 2,290 of 5,864 images, 40 of 100 classes"``, one line a split."""
        return [
            f"{split}: "
            + ", ".join(
                f"{self.found[split][what]:,} of {number:,} {what}" for what, number in figures.items()
            )
            for split, figures in self.published.items()
        ]

    def name(self) -> str:
        """What a report may call the copy: ``"CUB-200-2011"``, or ``"CUB-200-2011 (partial: 40 of 200 classes)"``."""
        if not self.problems:
            return self.benchmark
        for what in ("classes", "images"):
            found, published = (
                sum(figures[what] for figures in side.values()) for side in (self.found, self.published)
            )
            if found < published:
                return f"{self.benchmark} (partial: {found:,} of {published:,} {what})"
        return f"{self.benchmark} (not as published)"


def compare(benchmark: str, published: Mapping[str, Figures], listed: Listed, present: np.ndarray) -> Check:
    """Count the images that are listed and present (bool [N]), and say what is not as published."""
    found = {split: _figures(listed, present & (listed.splits == split)) for split in published}
    problems = [
        f"{split}: {found[split][what]:,} {what} instead of {number:,}"
        for split, figures in published.items()
        for what, number in figures.items()
        if found[split][what] != number
    ]
    missing = np.flatnonzero(~present)
    if len(missing):
        files = "file is" if len(missing) == 1 else "files are"
        problems.append(f"{len(missing):,} listed {files} not there, the first {listed.files[missing[0]]}")
    if len(set(listed.ids)) < len(listed.ids):
        problems.append(f"{len(listed.ids) - len(set(listed.ids)):,} images are listed twice")
    train, test = (set(listed.labels[listed.splits == split].tolist()) for split in ("train", "test"))
    if shared := sorted(train & test):
        problems.append(
            f"train and test share {len(shared):,} classes, the first {listed.classes[shared[0]]!r}; "
            "the benchmark's have none in common"
        )
    return Check(benchmark, published, found, problems)


def _figures(listed: Listed, chosen: np.ndarray) -> Figures:
    figures = {"images": int(chosen.sum()), "classes": len(np.unique(listed.labels[chosen]))}
    if listed.is_query is not None and listed.is_gallery is not None:
        figures["queries"] = int((listed.is_query & chosen).sum())
        figures["gallery"] = int((listed.is_gallery & chosen).sum())
    return figures


def numbered(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Each name's position in ``classes``: int64 [N]."""
    label_of = {name: label for label, name in enumerate(classes)}
    return np.array([label_of[name] for name in names], dtype=np.int64)

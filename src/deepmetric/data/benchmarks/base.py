"""What the benchmarks share: opened only when they are whole, or as a partial copy that is called so."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from filelock import FileLock
from torch import Tensor

from deepmetric.data.benchmarks.check import Check, Figures, Listed, NotTheBenchmark, compare
from deepmetric.data.benchmarks.copy import Copy
from deepmetric.data.benchmarks.download import Archive, download_and_unpack
from deepmetric.data.dataset import Dataset
from deepmetric.data.images import decode
from deepmetric.data.splits import ClassSplit, item_splits
from deepmetric.data.unreadable import leave_out_unreadable
from deepmetric.errors import InputError


class Benchmark(Dataset):
    """A published data set in its original layout, with its published split into training and test classes.

    A subclass names the figures and reads the lists. Opening counts images and classes of each split against the
    published figures, looks for every listed file (without opening it) and for classes in both splits.

    Args:
        root: the folder or .zip archive that holds the original files, or the folder above them.
        partial: take a copy that fails the check as what it is. Its ``name`` then says so, and is the benchmark's only
            where the copy is whole.
        split: deals a validation split out of the training classes, ``ClassSplit(val=0.1)``; and, for a partial copy
            that has no test classes, a test split as well. None: the published splits alone.
        download: fetch and unpack what is missing into ``root``, where the licence allows that.
        skip_unreadable: decode every file now. With ``partial``, those that fail are left out and listed in
            ``skipped``; without it a copy with one is refused.

    Attributes:
        name: the benchmark's name, or the same with ``(partial: ...)``.
        ks: the K of Recall@K as published.

    Raises:
        NotTheBenchmark: (an InputError) a copy that is not whole, without ``partial``; lists that are not there.
        InputError: nothing at ``root``, a broken list, no image at all, a download that is not possible.
    """

    title: ClassVar[str]
    published: ClassVar[dict[str, Figures]]
    layout: ClassVar[str]  # what is expected under root
    source: ClassVar[str]  # where it is to be had
    archives: ClassVar[tuple[Archive, ...]] = ()  # what may be downloaded without asking anybody

    def __init__(
        self,
        root: str | Path,
        *,
        partial: bool = False,
        split: ClassSplit | None = None,
        download: bool = False,
        skip_unreadable: bool = False,
    ) -> None:
        root = Path(root).expanduser()
        if download:
            self._download(root)
        copy, listed, present, check = self._examine(root)
        if check.problems and not partial:
            raise NotTheBenchmark(self._refusal(root, check))
        if not present.any():
            raise InputError(
                f"none of the {len(listed.ids):,} images of {self.title} is at {root}. Expected {self.layout}"
            )
        here = np.flatnonzero(present)
        labels, splits = listed.labels[here], listed.splits[here]
        super().__init__(
            [listed.ids[i] for i in here],
            labels,
            listed.classes,
            item_splits(labels, listed.classes, splits, split),
            is_query=None if listed.is_query is None else listed.is_query[here],
            is_gallery=None if listed.is_gallery is None else listed.is_gallery[here],
            categories=None if listed.categories is None else listed.categories[here],
        )
        self.name = check.name()
        self._files = copy.files
        self._names = [listed.files[i] for i in here]
        self._boxes = None if listed.boxes is None else listed.boxes[here]
        if skip_unreadable:
            leave_out_unreadable(self)
            if self.skipped and not partial:
                raise NotTheBenchmark(
                    f"{len(self.skipped):,} images of this copy of {self.title} cannot be read, the first "
                    f"{self.skipped[0]}. Take them from the original archive again, or set partial: true to leave them "
                    "out"
                )

    @staticmethod
    def listed(copy: Copy) -> Listed:
        """What the benchmark's own lists say, as the published protocol splits it."""
        raise NotImplementedError

    @property
    def boxes(self) -> np.ndarray | None:
        """float32 [N, 4]: x_1, y_1, x_2, y_2 of the object in pixels; None where the benchmark has none.

        The protocol crops no image to its box, and neither does :meth:`read`.
        """
        return None if self._boxes is None else self._boxes[self._rows]

    def load(self, row: int) -> Tensor:
        name = self._names[row]
        return decode(self._files.read(name), self._files.path(name))

    def _examine(self, root: Path) -> tuple[Copy, Listed, np.ndarray, Check]:
        copy = Copy(root, self.title, self.layout)
        listed = self.listed(copy)
        present = np.array(copy.files.present(listed.files), dtype=bool)
        return copy, listed, present, compare(self.title, self.published, listed, present)

    def _refusal(self, root: Path, check: Check) -> str:
        lines = [
            f"{root} is not the whole of {self.title}, so it cannot be opened under that name:",
            *(
                f"  {line}"
                for line in [*check.figures(), *(p for p in check.problems if "instead of" not in p)]
            ),
            f"Expected {self.layout}",
            f"Complete the copy: {self.source}",
            f"Or use it as it is, never reported as {self.title}: partial=True, or --data.partial true after "
            "`deepmetric train`",
        ]
        return "\n".join(lines)

    def _download(self, root: Path) -> None:
        if not self.archives:
            raise InputError(f"{self.title} cannot be downloaded by a program. {self.source}")
        if root.suffix.lower() == ".zip":
            raise InputError(f"{root}: name a folder to download {self.title} to")
        if self._is_whole(root):
            return
        root.mkdir(parents=True, exist_ok=True)
        # Processes that train together open the data together: one fetches them.
        with FileLock(root / ".download.lock"):
            if not self._is_whole(root):
                for archive in self.archives:
                    download_and_unpack(archive, root)

    def _is_whole(self, root: Path) -> bool:
        try:
            return not self._examine(root)[-1].problems
        except InputError:  # nothing there, or a list that a killed process half unpacked
            return False

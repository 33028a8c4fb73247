"""Images in folders named after their classes, on disk or in a zip archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from deepmetric.data.dataset import Dataset
from deepmetric.data.files import Listing, open_files
from deepmetric.data.images import EXTENSIONS, decode
from deepmetric.data.open import TABLES
from deepmetric.data.splits import SPELLINGS, ClassSplit, item_splits, natural_key
from deepmetric.data.unreadable import leave_out_unreadable
from deepmetric.errors import InputError


class FolderDataset(Dataset):
    """``root/class/image`` or ``root/train|val|test/class/image``, in a folder or a .zip file of the same.

    The folder that holds an image is its class; nested folders give names such as ``alphabet/character``
    and, where all classes are nested, their top folder as the category. A single
    folder that wraps everything is entered by itself. ``valid`` and ``validation`` are read as ``val``. Files that are
    no images by their extension, hidden ones and ``__MACOSX`` are passed over. Items are sorted by id, which is the
    path relative to ``root``.

    Args:
        root: the folder or the zip file.
        split: how to deal classes to the splits that the source lacks. None: as the folders say, and where they say
            nothing ``ClassSplit()``.
        skip_unreadable: decode every file now and leave out those that fail, listed in ``skipped``. Without it the
            first broken file raises when it is read.

    Raises:
        InputError: no such folder, a table, no image, an empty folder, images outside any class folder.
    """

    def __init__(
        self, root: str | Path, *, split: ClassSplit | None = None, skip_unreadable: bool = False
    ) -> None:
        root = Path(root).expanduser()
        if root.suffix.lower() in TABLES and root.is_file():
            raise InputError(
                f"{root} is a table; expected a folder or a .zip file. deepmetric.data.TableDataset reads tables: "
                f"train with the recipe data/table and --data.path {root}"
            )
        self._files = open_files(root)
        listing = self._files.list()
        ids = sorted(listing.images, key=natural_key)
        if not ids:
            raise InputError(f"no image in {root}: looked for files ending in {' '.join(sorted(EXTENSIONS))}")
        base = _wrapping(ids)
        folders = [name[len(base) :].rpartition("/")[0] for name in ids]  # [N] "split/class" or "class"
        given = _given_splits(folders, root)
        _refuse_empty(listing, base, root)
        if given is not None:
            folders = [name.partition("/")[2] for name in folders]
        if "" in folders:
            raise InputError(
                f"the image {self._files.path(ids[folders.index('')])} lies in no class folder: expected "
                "class/image or train|val|test/class/image. Move it into one, or remove it"
            )
        classes = sorted(set(folders), key=natural_key)
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[name] for name in folders], dtype=np.int64)
        nested = all("/" in name for name in classes)
        super().__init__(
            ids,
            labels,
            classes,
            item_splits(labels, classes, given, split),
            categories=np.array([name.partition("/")[0] for name in folders]) if nested else None,
        )
        self._names = self.ids
        if skip_unreadable:
            leave_out_unreadable(self)

    def load(self, row: int) -> Tensor:
        name = self._names[row]
        return decode(self._files.read(name), self._files.path(name))


def _wrapping(ids: list[str]) -> str:
    """The folders that hold all images and are neither a class nor a split, ``"a/b/"`` or ``""``."""
    base = ""
    while True:
        rest = [name[len(base) :].split("/") for name in ids]
        top = rest[0][0]
        wraps = all(len(parts) > 2 and parts[0] == top for parts in rest)
        if not wraps or top.lower() in SPELLINGS:
            return base
        base += top + "/"


def _given_splits(folders: list[str], root: Path) -> np.ndarray | None:
    """The split of each item when the top folders are splits, else None."""
    tops = [name.partition("/")[0] for name in folders]
    splits = sorted({top for top in tops if top.lower() in SPELLINGS})
    others = sorted({top for top in tops if top.lower() not in SPELLINGS})
    if not splits or (others and len(splits) == 1):  # one alone may be a class: CIFAR-100 has trains
        return None
    if others:
        raise InputError(
            f"{root} has the splits {', '.join(splits)} and beside them {others[0] or 'images'!r}: expected splits "
            "alone or classes alone. Move one of them elsewhere"
        )
    return np.array([SPELLINGS[top.lower()] for top in tops], dtype="<U5")


def _refuse_empty(listing: Listing, base: str, root: Path) -> None:
    full = {""}
    for name in listing.images:
        while name := name.rpartition("/")[0]:
            full.add(name)
    empty = [name for name in listing.folders if name.startswith(base) and name not in full]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise InputError(
            f"no image in the folder {root / min(empty, key=natural_key)}{more}. Remove the folder, or put the "
            "class's images there"
        )

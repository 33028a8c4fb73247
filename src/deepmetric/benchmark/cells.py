"""The cells of a benchmark's table: (data, system, seed, fold), each a run folder that one worker at a time owns.

OUT/plan.json                        what is to be done, and how recipes differ from those shipped
OUT/data/DATA.npz                    the test items: ids, labels, which are queries and gallery; what they are called
OUT/cells/DATA/SYSTEM/seed0-fold1/   a run as `deepmetric train` leaves it, and
    test_embeddings.npy              float32 [N, d] of the test items
    result.json                      written last: the cell is finished
    claim.lock                       held by the worker at work on the cell
    error.txt                        why the cell could not be finished
    log.txt                          what training said
OUT/concatenated/                    evaluations of the folds' embeddings side by side, kept between reports
OUT/report/                          tables, figures and page
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from deepmetric.atomic import write_atomically


@dataclass(frozen=True, order=True)
class Cell:
    """One model to be trained and tested. Ordered by seed and fold first: what is there early can be compared."""

    seed: int
    fold: int
    data: str
    system: str

    def folder(self, out: Path) -> Path:
        return out / "cells" / self.data / self.system / f"seed{self.seed}-fold{self.fold}"

    def finished(self, out: Path) -> bool:
        return (self.folder(out) / "result.json").is_file()

    def failed(self, out: Path) -> bool:
        return (self.folder(out) / "error.txt").is_file()

    def result(self, out: Path) -> dict[str, Any]:
        return json.loads((self.folder(out) / "result.json").read_text(encoding="utf8"))

    def __str__(self) -> str:
        return f"{self.data} {self.system} seed {self.seed} fold {self.fold}"


def all_cells(seeds: Sequence[int], folds: int, data: Sequence[str], systems: Sequence[str]) -> list[Cell]:
    """In the order in which they are done: by seed, fold, data set, system as listed."""
    return [Cell(*cell) for cell in product(seeds, range(folds), data, systems)]


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether this process now owns ``folder``, until the block ends.

    An advisory lock of the operating system (flock): it ends with the process that holds it, however that ends, so
    that no cell stays claimed by a dead worker. Shared file systems that implement flock (NFS 4, Lustre, CephFS) carry
    it between machines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "claim.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Atomically, as a compressed .npz file, its folder made where need be."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(beside: Path) -> None:
        with beside.open("wb") as file:  # given a path, it would add .npz to the name
            np.savez_compressed(file, **arrays)

    write_atomically(path, save)

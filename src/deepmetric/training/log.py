"""Where numbers go: metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deepmetric.atomic import write_atomically


class MetricsLog:
    """Writes each record as a line of metrics.jsonl, its numbers to TensorBoard too.

    Args:
        file: metrics.jsonl.
        folder: TensorBoard's.
        first_step: the step after which records are new; -1: all are. Older records stay; those of a run that was
            killed after its last checkpoint are dropped, because they will be made again.
    """

    def __init__(self, file: Path, folder: Path, first_step: int):
        # tensorboard's import takes more than a second
        from torch.utils.tensorboard.writer import SummaryWriter

        if file.exists():
            kept = [
                line for line in file.read_bytes().splitlines(keepends=True) if _is_older(line, first_step)
            ]
            write_atomically(file, lambda beside: beside.write_bytes(b"".join(kept)))
        self._file = file.open("a", encoding="utf8")
        self._board = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, record: dict[str, Any], prefix: str) -> None:
        """Add a record; it must hold ``step``. ``prefix`` groups its numbers in TensorBoard."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for key, value in record.items():
            if isinstance(value, (int, float)) and key != "step":
                self._board.add_scalar(f"{prefix}/{key}", value, record["step"])

    def speed(self, items_per_second: float, step: int) -> None:
        """Throughput: for TensorBoard alone, so that metrics.jsonl of two equal runs is equal."""
        self._board.add_scalar("speed/items_per_second", items_per_second, step)

    def sync(self) -> None:
        """Put all records on the disk, as a checkpoint is about to count on them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoLog:
    """The log of a process that writes nothing."""

    def write(self, record: dict[str, Any], prefix: str) -> None: ...

    def speed(self, items_per_second: float, step: int) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def _is_older(line: bytes, first_step: int) -> bool:
    try:
        return json.loads(line)["step"] <= first_step and line.endswith(b"\n")
    except ValueError:  # the line that a kill cut short
        return False


def progress_bar(total: int, done: int, shown: bool = True) -> tqdm:
    """A bar on stderr; where that is a file, a line every half minute."""
    seconds = 0.1 if sys.stderr.isatty() else 30
    return tqdm(
        total=total,
        initial=done,
        desc="train",
        unit="step",
        mininterval=seconds,
        maxinterval=2 * seconds,
        file=sys.stderr,
        disable=not shown,
    )

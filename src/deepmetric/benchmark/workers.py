"""Workers: each takes the next cell that nobody has, until none is left."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepmetric.atomic import write_text
from deepmetric.benchmark.cells import Cell, claim
from deepmetric.errors import InputError

if TYPE_CHECKING:
    from deepmetric.benchmark.open_data import OpenData

WAIT = 2.0  # seconds between looks at cells that others are at work on


def work(
    out: Path,
    cells: Sequence[Cell],
    recipes: dict[tuple[str, str], dict[str, Any]],
    folds: int,
    opened: OpenData,
) -> None:
    """Do what is left of ``cells``, whoever else is at work on them; returns when each is finished or has failed.

    A cell whose worker dies is free at once, and whoever takes it goes on from its last checkpoint. A cell that fails
    leaves error.txt and does not stop the others.
    """
    from deepmetric.benchmark.resolve import of_cell
    from deepmetric.benchmark.run_cell import run_cell

    waiting = False
    while left := [cell for cell in cells if not (cell.finished(out) or cell.failed(out))]:
        took = False
        for cell in left:
            with claim(cell.folder(out)) as mine:
                # It may have been finished between the look and the claim.
                if not mine or cell.finished(out) or cell.failed(out):
                    continue
                took = True
                began = time.perf_counter()
                recipe = of_cell(recipes[cell.data, cell.system], cell.fold, folds, cell.seed)
                try:
                    result = run_cell(cell, out, recipe, opened)
                except Exception as error:
                    # Ours or the system's: the other cells need not suffer for it.
                    reason = str(error) if isinstance(error, InputError) else traceback.format_exc()
                    write_text(cell.folder(out) / "error.txt", reason)
                    _say(out, cells, f"{cell} FAILED: {reason.strip().splitlines()[-1]}")
                    continue
            test, best = result["test"], result["validation"]
            validated = f"validation {best['map@r']:.4f} at step {best['step']}" if best else "not validated"
            _say(
                out,
                cells,
                f"{cell}: P@1 {test['precision@1']:.4f}, R-precision {test['r_precision']:.4f}, MAP@R "
                f"{test['map@r']:.4f} ({validated}), "
                f"{time.perf_counter() - began:.0f} s",
            )
        if not took:
            if not waiting:
                print(
                    f"waiting for {len(left)} cells that other workers are at work on",
                    file=sys.stderr,
                    flush=True,
                )
            waiting = True
            time.sleep(WAIT)


def in_processes(workers: int, target: Callable[..., None], *arguments: Any) -> None:
    """Call ``target(*arguments)`` in ``workers`` processes at once, or in this one when it is one.

    The processes end with this one, however it ends.

    Raises:
        InputError: a process ended badly.
    """
    if workers == 1:
        target(*arguments)
        return
    context = get_context("spawn")  # a fork after torch has started its threads may hang
    processes = [
        context.Process(target=_worker, args=(i, workers, target, *arguments), name=f"worker {i}")
        for i in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
    bad = [f"{process.name} (exit status {process.exitcode})" for process in processes if process.exitcode]
    if bad:
        raise InputError(f"{', '.join(bad)} ended early. The same command takes up what is left.")


def _worker(index: int, workers: int, target: Callable[..., None], *arguments: Any) -> None:
    import torch

    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())
    try:
        target(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(out: Path, cells: Sequence[Cell], text: str) -> None:
    done = sum(cell.finished(out) for cell in cells)
    print(f"[{done}/{len(cells)}] {text}", file=sys.stderr, flush=True)

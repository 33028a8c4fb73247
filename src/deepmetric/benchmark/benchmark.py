"""A whole benchmark: check the plan, let workers do the cells, write the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

from deepmetric.atomic import write_text
from deepmetric.benchmark.cells import Cell, all_cells, claim
from deepmetric.benchmark.open_data import OpenData
from deepmetric.benchmark.plan import Plan
from deepmetric.benchmark.resolve import changes, of_cell, resolved, shipped
from deepmetric.benchmark.run_cell import check_same
from deepmetric.benchmark.workers import in_processes, work
from deepmetric.errors import InputError

Recipes = dict[tuple[str, str], dict[str, Any]]


def run_benchmark(plan: Plan, out: Path, workers: int = 1, tuned: Path | None = None) -> list[Cell]:
    """Do all cells of ``plan`` that are not finished in the folder ``out``; returns those that failed.

    Any number of processes may do this on the same folder at the same time, also on several machines that share it.

    Args:
        tuned: the folder of `deepmetric tune`; its best values are taken for the systems that it has.

    Raises:
        InputError: what a recipe or a data set of the plan has wrong, before anything is trained, also that it has
            changed since cells were finished; an ``out`` that holds other things; a worker that ended badly.
    """
    _refuse_other_contents(out)
    recipes: Recipes = {
        (data.name, system.name): resolved(plan, data, system, tuned_recipe(tuned, data.name, system.name))
        for data in plan.data
        for system in plan.systems
    }
    cells = plan_cells(plan)
    written = {
        cell: of_cell(recipes[cell.data, cell.system], cell.fold, plan.folds, cell.seed) for cell in cells
    }
    for cell in cells:
        check_same(cell.folder(out), written[cell])
    opened = OpenData()
    left = [(cell.data, recipes[cell.data, cell.system]) for cell in cells if not cell.finished(out)]
    opened.check(left, plan.folds, ("val", "test") if plan.folds > 1 else ("test",))
    more = {name for name, _ in left}
    done = {(cell.data, cell.fold): cell for cell in cells if cell.data in more and cell.finished(out)}
    for cell in done.values():  # one of each fold: the systems share it
        opened.refuse_changed(cell.folder(out), written[cell])
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "plan.lock"):
        write_text(out / "plan.json", json.dumps(_described(plan, recipes), indent=1))
    for cell in cells:
        if cell.failed(out):
            with claim(cell.folder(out)) as mine:
                if mine:  # failed in an earlier command: tried again
                    (cell.folder(out) / "error.txt").unlink(missing_ok=True)
    finished = sum(cell.finished(out) for cell in cells)
    print(f"{len(cells)} cells, {finished} of them finished: {out}", file=sys.stderr, flush=True)
    if finished < len(cells):
        in_processes(workers, work, out, cells, recipes, plan.folds, opened)
    return [cell for cell in cells if not cell.finished(out)]


def _refuse_other_contents(out: Path) -> None:
    if not out.exists() or (out / "plan.json").is_file():
        return
    if not out.is_dir() or any(entry.name != "plan.lock" for entry in out.iterdir()):
        raise InputError(
            f"{out} is there already and is not the folder of a benchmark. Name a new or empty folder with --out."
        )


def plan_cells(plan: Plan) -> list[Cell]:
    """All cells, in the order in which they are done."""
    data, systems = ([entry.name for entry in entries] for entries in (plan.data, plan.systems))
    return all_cells(plan.seeds, plan.folds, data, systems)


def tuned_recipe(folder: Path | None, data: str, system: str) -> Path | None:
    """The best values that `deepmetric tune` found, if it has looked for them.

    Raises:
        InputError: there is no such folder.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: --tuned takes the --out of `deepmetric tune`.")
    file = folder / data / f"{system}.yaml"
    return file if file.is_file() else None


def _described(plan: Plan, recipes: Recipes) -> dict[str, Any]:
    """What the report needs to know of the plan."""
    as_shipped = {
        (data.name, system.name): shipped(data, system) for data in plan.data for system in plan.systems
    }
    return {
        "description": plan.description,
        "folds": plan.folds,
        "seeds": list(plan.seeds),
        "data": [data.name for data in plan.data],
        "systems": [system.name for system in plan.systems],
        "recipes": {system.name: [_name(path) for path in system.recipes] for system in plan.systems},
        "changes": {
            data.name: {
                system.name: changes(as_shipped[data.name, system.name], recipes[data.name, system.name])
                for system in plan.systems
            }
            for data in plan.data
        },
    }


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"

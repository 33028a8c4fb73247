"""The recipe that a system has on a data set, and how it differs from the recipe as shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deepmetric.benchmark.plan import Entry, Plan, as_arguments
from deepmetric.errors import InputError
from deepmetric.training.parse import dump_recipe, parse_recipe, recipe_parser

# key, as shipped, here
Change = tuple[str, Any, Any]


def resolved(
    plan: Plan, data: Entry, system: Entry, tuned: Path | None = None, chosen: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Every setting of ``system`` on ``data``, defaults included, as plain data.

    In this order, later ones win: the data's recipe and settings, the plan's settings, the system's recipe and
    settings, ``tuned`` (a recipe file that `deepmetric tune` wrote), ``chosen`` (dotted keys of a trial).

    Raises:
        InputError: what :func:`parse_recipe` raises, with the names of both.
    """
    arguments = [*data.arguments(), *as_arguments(plan.settings), *system.arguments()]
    if tuned is not None:
        arguments += ["--config", str(tuned)]
    try:
        return _read([*arguments, *as_arguments(chosen or {})])
    except InputError as error:
        raise InputError(f"{system.name} on {data.name}: {error}") from error


def shipped(data: Entry, system: Entry) -> dict[str, Any]:
    """The same from the recipe files alone."""
    return _read([word for one in (data, system) for path in one.recipes for word in ("--config", str(path))])


def of_cell(recipe: dict[str, Any], fold: int, folds: int, seed: int) -> dict[str, Any]:
    """``recipe`` on one fold. Each pair of seed and fold has a seed of its own, the same for all systems."""
    data = {"data": recipe["data"], "fold": fold, "folds": folds}
    wrapped = {"class_path": "deepmetric.data.FoldDataset", "init_args": data}
    return {**recipe, "data": wrapped, "seed": seed * folds + fold}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """What ``after`` has otherwise than ``before``, of all that acts on a run.

    Where files lie on this machine does not count, nor do a paper's figures, which may be corrected while a run is on.
    A file of another name, or none before, is another setting: weights that are read are not those of a random start.
    """
    old, new = flat(before), flat(after)
    found = [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]
    return [change for change in found if not _is_moved(*change) and not _is_quoted(change[0])]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys, without ``init_args``, as they are written on the command line.

    >>> flat({"loss": {"class_path": "L", "init_args": {"margin": 1}}})
    {'loss': 'L', 'loss.margin': 1}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    items = {}
    for key, inner in value.items():
        transparent = key in ("class_path", "init_args") and prefix
        items |= flat(inner, prefix if transparent else f"{prefix}.{key}".lstrip("."))
    return items


def _read(arguments: list[str]) -> dict[str, Any]:
    parser = recipe_parser()
    _, values = parse_recipe(arguments, parser)
    return yaml.safe_load(dump_recipe(parser, values))


def _is_quoted(key: str) -> bool:
    return key.rpartition(".")[2] == "published"


def _is_moved(key: str, before: Any, after: Any) -> bool:
    if not (isinstance(after, str) and "/" in after and Path(after).exists()):
        return False
    # Data may be renamed too: they are told by their items.
    return "data" in key.split(".") or (isinstance(before, str) and Path(before).name == Path(after).name)

"""What a benchmark's YAML file says: which systems on which data, in how many folds and with which seeds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deepmetric.errors import InputError, did_you_mean
from deepmetric.recipes import find_recipe, shipped_recipes


@dataclass(frozen=True)
class Entry:
    """A data set or a system.

    name: as in the tables and in folder names.
    recipes: files, later ones win.
    settings: dotted recipe key -> value, over the files.
    search: of a system, dotted recipe key -> its range, for `deepmetric tune`.
    """

    name: str
    recipes: tuple[Path, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """As they would stand behind ``deepmetric train``."""
        files = [word for path in self.recipes for word in ("--config", str(path))]
        return files + as_arguments(self.settings)


@dataclass(frozen=True)
class Tuning:
    """How `deepmetric tune` searches.

    trials: settings tried for each data set and system.
    pruner: median, hyperband or none.
    seed: of the search and of the trials' training.
    """

    trials: int = 50
    pruner: str = "median"
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """A benchmark. ``settings`` hold for all systems unless a system's own recipe or settings name the same key.

    One fold is no cross-validation: all training classes train, and the last model is the one that is tested.
    """

    data: tuple[Entry, ...]
    systems: tuple[Entry, ...]
    folds: int = 4
    seeds: tuple[int, ...] = (0,)
    settings: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    tune: Tuning = field(default_factory=Tuning)


def read_plan(file: str | Path, roots: dict[str, str] | None = None) -> Plan:
    """Read a benchmark's YAML file.

    Args:
        file: keys ``data`` and ``systems`` (lists of recipe names, or of mappings with ``name``, ``recipe`` and
            ``set``; a system may have ``search`` too), ``folds``, ``seeds``, ``settings``, ``description``, ``tune``.
        roots: data set -> ``data.root``, over the file's.

    Raises:
        InputError: a key that is not known (with the nearest one that is), a recipe that is not there, a wrong type.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no benchmark file at {path}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    known = ("data", "systems", "folds", "seeds", "settings", "description", "tune")
    _check_keys(content, known, str(path), needed=("data", "systems"))
    data = _entries(content["data"], "data", path)
    systems = _entries(content["systems"], "systems", path)
    names = [entry.name for entry in data]
    for name, root in (roots or {}).items():
        if name not in names:
            raise InputError(
                f"{path} has no data set {name!r}, only {', '.join(names)}.{did_you_mean(name, names)}"
            )
        next(entry for entry in data if entry.name == name).settings["data.root"] = root
    folds, seeds = content.get("folds", 4), content.get("seeds", [0])
    if not isinstance(folds, int) or folds < 1:
        raise InputError(f"`folds` of {path} is {folds!r}; expected a whole number from 1.")
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise InputError(f"`seeds` of {path} is {seeds!r}; expected a list of whole numbers from 0.")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"`seeds` of {path} names a seed twice: {seeds}.")
    settings = _mapping(content.get("settings"), f"`settings` of {path}")
    return Plan(
        data,
        systems,
        folds,
        tuple(seeds),
        settings,
        str(content.get("description") or ""),
        _tuning(content, path),
    )


def as_arguments(settings: dict[str, Any]) -> list[str]:
    """Dotted keys and values as command-line arguments.

    >>> as_arguments({"loss.margin": 0.2, "model.weights": None})
    ['--loss.margin', '0.2', '--model.weights', 'null']
    """
    pairs = (
        (f"--{key}", value if isinstance(value, str) else json.dumps(value))
        for key, value in settings.items()
    )
    return [word for pair in pairs for word in pair]


def _tuning(content: dict[str, Any], path: Path) -> Tuning:
    given = _mapping(content.get("tune"), f"`tune` of {path}")
    _check_keys(given, ("trials", "pruner", "seed"), f"`tune` of {path}")
    tuning = Tuning(**given)
    if not isinstance(tuning.trials, int) or tuning.trials < 1:
        raise InputError(f"`tune.trials` of {path} is {tuning.trials!r}; expected a whole number from 1.")
    if not isinstance(tuning.seed, int) or tuning.seed < 0:
        raise InputError(f"`tune.seed` of {path} is {tuning.seed!r}; expected a whole number from 0.")
    pruners = ("median", "hyperband", "none")
    if tuning.pruner not in pruners:
        raise InputError(
            f"`tune.pruner` of {path} is {tuning.pruner!r}; expected one of {', '.join(pruners)}."
            f"{did_you_mean(str(tuning.pruner), pruners)}"
        )
    return tuning


def _entries(given: Any, kind: str, path: Path) -> tuple[Entry, ...]:
    if not isinstance(given, list) or not given:
        raise InputError(f"`{kind}` of {path} must be a list with at least one entry, got {given!r}.")
    entries = tuple(_entry(one, kind, path) for one in given)
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"`{kind}` of {path} has {name!r} twice. Give one another `name`.")
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            raise InputError(
                f"{name!r} in `{kind}` of {path} cannot name a folder: use letters, digits, . _ + -"
            )
    return entries


def _entry(given: Any, kind: str, path: Path) -> Entry:
    if isinstance(given, str):
        given = {"recipe": given}
    keys = ("name", "recipe", "set", "search") if kind == "systems" else ("name", "recipe", "set")
    _check_keys(given, keys, f"an entry of `{kind}` in {path}")
    name, recipes = given.get("name"), given.get("recipe", given.get("name"))
    if recipes is None:
        raise InputError(f"an entry of `{kind}` in {path} has neither `recipe` nor `name`: {given}.")
    recipes = [recipes] if isinstance(recipes, str) else recipes
    if not isinstance(recipes, list) or not all(isinstance(one, str) for one in recipes):
        raise InputError(
            f"`recipe` of an entry of `{kind}` in {path} is {recipes!r}; expected a name or a list of names."
        )
    name = str(name or "+".join(Path(recipe).stem for recipe in recipes))
    return Entry(
        name,
        tuple(_find(recipe, kind) for recipe in recipes),
        _mapping(given.get("set"), f"`set` of {name} in {path}"),
        _mapping(given.get("search"), f"`search` of {name} in {path}"),
    )


def _find(name: str, kind: str) -> Path:
    short = f"{kind}/{name}"
    return find_recipe(short if short in shipped_recipes() and not Path(name).is_file() else name)


def _mapping(given: Any, where: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{where} must map dotted recipe keys to values, got {given!r}.")
    return dict(given)


def _check_keys(given: Any, known: tuple[str, ...], where: str, needed: tuple[str, ...] = ()) -> None:
    if not isinstance(given, dict):
        raise InputError(f"{where} must be a mapping with the keys {', '.join(known)}, got {given!r}.")
    for key in given:
        if key not in known:
            raise InputError(
                f"{where} has no key {key!r}, only {', '.join(known)}.{did_you_mean(str(key), known)}"
            )
    for key in needed:
        if key not in given:
            raise InputError(f"{where} lacks `{key}`.")

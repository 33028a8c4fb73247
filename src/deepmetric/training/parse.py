"""Recipes in YAML and on the command line, through jsonargparse, with the nearest right key in its errors."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import warnings
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace
from torch.optim import Optimizer

from deepmetric.errors import InputError, did_you_mean
from deepmetric.recipes import check_recipe_file
from deepmetric.training.recipe import Recipe

# What jsonargparse says of a key or a name that it does not know.
_UNKNOWN = re.compile(
    r"[Oo]ption '([\w.]+)' is not accepted|does not accept option '([\w.]+)'"
    r"|unrecognized arguments: --([\w.\-]+)|has no attribute '(\w+)'|No module named '([\w.]+)'"
)


def recipe_parser(**kwargs: Any) -> ArgumentParser:
    """A parser of recipes: ``--config FILE`` (again and again, later ones win) and ``--dotted.key value``."""
    parser = ArgumentParser(exit_on_error=False, **kwargs)
    parser.add_argument(
        "--config", action="config", help="a recipe in YAML; may be given several times, later wins"
    )
    # A class of the user's own may have arguments without types: they take whatever YAML holds.
    parser.add_class_arguments(Recipe, as_group=False, fail_untyped=False)
    return parser


def parse_recipe(arguments: list[str], parser: ArgumentParser | None = None) -> tuple[Recipe, Namespace]:
    """Read a recipe from command-line arguments (``--config FILE --dotted.key value ...``).

    Returns the recipe and the namespace of what was parsed. Raises InputError for a file that is no recipe, a key that
    no part takes (with the nearest one that it does take), a wrong type, a setting out of its range, a missing part, a
    class that cannot be found. The optimiser's settings are checked when it is made.
    """
    parser = parser or recipe_parser()
    for file in _config_files(arguments):
        check_recipe_file(file)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise InputError(_explain(str(error), arguments)) from error
    built = parser.instantiate(values)
    recipe = Recipe(**{field.name: built[field.name] for field in fields(Recipe)})
    recipe.optimizer = _with_clear_errors(recipe.optimizer)
    return recipe, values


def dump_recipe(parser: ArgumentParser, values: Namespace) -> str:
    """The resolved recipe as YAML: every setting, defaults included, paths of data and weights made absolute."""
    with warnings.catch_warnings():
        # It cannot write a number where the annotation is an abstract one; `_exact` puts the number back.
        warnings.filterwarnings("ignore", message=r"\s*Unable to serialize")
        # null is a value: without it, reading the file again would bring a default back.
        dumped = yaml.safe_load(parser.dump(values, skip_unset=False))
    resolved = _exact(values.as_dict(), dumped)
    recipe = {field.name: resolved.get(field.name) for field in fields(Recipe)}
    for part in ("data", "model"):
        arguments = (recipe[part] or {}).get("init_args") or {}
        for key, value in arguments.items():
            # A run may be resumed or evaluated from another working directory.
            if isinstance(value, str) and (part == "data" or key == "weights") and Path(value).exists():
                arguments[key] = str(Path(value).resolve())
    return yaml.safe_dump(recipe, sort_keys=False)


def _with_clear_errors(make: Callable[[list], Optimizer]) -> Callable[[list], Optimizer]:
    """The factory of an optimiser, whose own checks come as an InputError: torch raises ValueError and RuntimeError."""

    def optimizer(groups: list) -> Optimizer:
        try:
            return make(groups)
        except InputError:
            raise
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"`optimizer` of the recipe cannot be made: {error}. Mend its `init_args` or `learning_rates`."
            ) from error

    return optimizer


def _exact(value: Any, dumped: Any) -> Any:
    """``value`` where it is plain data, else what the parser wrote of it."""
    if isinstance(value, dict) and isinstance(dumped, dict):
        return {key: _exact(value.get(key), item) for key, item in dumped.items()}
    if isinstance(value, (list, tuple)) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_exact(one, other) for one, other in zip(value, dumped)]
    return value if isinstance(value, (bool, int, float)) else dumped


def _explain(message: str, arguments: list[str]) -> str:
    """The parser's message, shortened to what was wrong and where, with the nearest right key."""
    hints = []
    for match in _UNKNOWN.finditer(message):
        unknown = next(group for group in match.groups() if group)
        hint = _nearest(unknown, message, arguments)
        if hint and hint not in hints:
            hints.append(hint)
    missing = re.search(r"the following arguments are required: (.*)", message)
    if missing:
        return (
            f"the recipe lacks: {missing[1]}. Name a data recipe and a system, for example "
            f"`deepmetric train data/glyphs systems/multi_similarity`; `deepmetric recipes` lists them."
        )
    # The dump of the whole value that follows helps nobody.
    text = re.split(r"\. Got value: Namespace|\n\s*Given value type", message)[0].strip()
    return f"the recipe cannot be read: {text}.{''.join(hints)}"


def _nearest(unknown: str, message: str, arguments: list[str]) -> str:
    near = {"class_path", "init_args"} | _names(re.findall(r"class_path[= ]'([\w.]+)'", message))
    far = _recipe_keys() | _names(_named_classes(arguments))
    words = unknown.split(".")
    wrong = next((word for word in words if word not in near | far), words[-1])
    # What the class at fault takes comes first.
    return did_you_mean(wrong, near) or did_you_mean(unknown, far) or did_you_mean(wrong, far)


def _recipe_keys() -> set[str]:
    keys = set()
    for field_name, kind in get_type_hints(Recipe).items():
        keys.add(field_name)
        if is_dataclass(kind):
            keys |= {f"{field_name}.{inner.name}" for inner in fields(kind)} | {
                inner.name for inner in fields(kind)
            }
    return keys


def _named_classes(arguments: list[str]) -> list[str]:
    """Every ``class_path`` of the recipe files among the arguments."""
    found = []
    for file in _config_files(arguments):
        found += re.findall(r"class_path:\s*['\"]?([\w.]+)", file.read_text(encoding="utf8"))
    return found


def _config_files(arguments: list[str]) -> list[Path]:
    """What is there of the files among the arguments: ``--config FILE`` or ``--config=FILE``."""
    given = [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    given += [value for option, value in itertools.pairwise(arguments) if option == "--config"]
    # The parser takes a recipe's text too: a name too long for a file is not there to os.path, an error to pathlib.
    return [Path(name) for name in given if os.path.exists(name)]


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _names(class_paths: list[str]) -> set[str]:
    """The arguments that classes take; for a class that is not there, the classes beside it."""
    names: set[str] = set()
    for path in class_paths:
        found = _load(path)
        if inspect.isclass(found):
            names |= set(inspect.signature(found).parameters)
        else:
            names |= _siblings(path)
    return names


def _siblings(path: str) -> set[str]:
    try:
        return {name for name in dir(import_module(path.rpartition(".")[0])) if name[:1].isupper()}
    except (ImportError, ValueError):
        return set()

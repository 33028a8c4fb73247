"""The recipes that come with deepmetric: ``data/`` one per data set, ``systems/`` one per system.

A run takes one of each: ``deepmetric train data/glyphs systems/multi_similarity``.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from deepmetric.errors import InputError, did_you_mean


def shipped_recipes() -> dict[str, Path]:
    """Name such as ``data/glyphs`` -> path of the YAML file, sorted by name."""
    folder = Path(__file__).parent
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))
    }


def find_recipe(name: str) -> Path:
    """Path of a recipe given as a file or by the name of a shipped one.

    Raises:
        InputError: if there is neither; names the nearest shipped recipe. What a file holds is not looked at here.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise InputError(
        f"there is no recipe {name!r}: no such file, and no recipe of that name comes with deepmetric."
        f"{did_you_mean(name, shipped)} `deepmetric recipes` lists them.{_if_data(Path(name))}"
    )


def check_recipe_file(path: Path) -> None:
    """See that a file holds a YAML mapping, as a recipe does.

    Raises:
        InputError: it holds something else; who gave data for a recipe is told how data is named.
    """
    if hint := _if_data(path):
        raise InputError(f"{path} is no recipe.{hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except UnicodeDecodeError:
        found = "it is no text"
    except yaml.YAMLError as error:
        found = " ".join(str(error).split())
    else:
        if isinstance(content, dict):
            return
        kind = "a list" if isinstance(content, list) else "a single value"
        found = "it is empty" if content is None else f"it holds {kind}"
    raise InputError(
        f"{path} is no recipe: {found}. A recipe is a YAML mapping, such as `training: {{steps: 500}}`; "
        "`deepmetric recipes` lists those that come with deepmetric."
    )


def _if_data(path: Path) -> str:
    """How to name the data at ``path`` in a training; empty when nothing is there or it does not look like data."""
    if not path.exists():
        return ""
    from deepmetric.data.images import EXTENSIONS
    from deepmetric.data.open import TABLES

    suffix = path.suffix.lower()
    if suffix in TABLES:
        option = f"data/table and --data.path {path}"
    elif path.is_dir() or suffix == ".zip":
        option = f"data/folder and --data.root {path}"
    elif suffix in EXTENSIONS:
        option = "data/folder and --data.root FOLDER, the folder of the images"
    else:
        return ""
    return f" It looks like data, which is named with a data recipe: {option}."

"""The recipes that come with deepmetric: ``data/`` one per data set, ``systems/`` one per system.

A run takes one of each: ``deepmetric train data/glyphs systems/multi_similarity``.
"""

from __future__ import annotations

from pathlib import Path

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
        InputError: if there is neither; names the nearest shipped recipe.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise InputError(
        f"there is no recipe {name!r}: no such file, and no recipe of that name comes with deepmetric."
        f"{did_you_mean(name, shipped)} `deepmetric recipes` lists them."
    )

"""``deepmetric recipes``: the recipes that come with deepmetric."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "list the recipes that come with deepmetric, a line each"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--path", metavar="NAME", help="print where this recipe lies, to copy and change it")


def run(args: Namespace) -> int:
    from deepmetric.recipes import find_recipe, shipped_recipes

    if args.path:
        print(find_recipe(args.path))
        return 0
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        # A recipe's first line says what it is.
        headline = path.read_text(encoding="utf8").partition("\n")[0].lstrip("# ")
        print(f"{name:<{width}}  {headline}")
    return 0

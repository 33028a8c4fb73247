"""``deepmetric search``: the nearest items of an index for images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from deepmetric.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from jsonargparse import ArgumentParser, Namespace

    from deepmetric.search import Neighbours

HELP = "find the nearest items of an index for images"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="a folder made by `deepmetric index`")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files to search with")
    parser.add_argument("-k", "--neighbours", type=int, default=10, metavar="K", help="how many to show")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: Namespace) -> int:
    from pathlib import Path

    images = [Path(name) for name in args.images]
    for image in images:
        _check(image)
    from deepmetric.search import Index

    found = Index.load(args.index).search_images(images, args.neighbours)
    if args.json:
        queries = [{"image": str(image), "neighbours": _rows(found, i)} for i, image in enumerate(images)]
        print(json.dumps({"index": args.index, "queries": queries}))  # ASCII: file names need not be UTF-8
    else:
        print("\n\n".join(_table(image, _rows(found, i)) for i, image in enumerate(images)))
    return 0


def _check(image: Path) -> None:
    if image.is_dir():
        raise InputError(f"{image} is a folder; name the images in it.")
    if not image.exists():
        beside = [entry.name for entry in image.parent.iterdir()] if image.parent.is_dir() else []
        raise InputError(f"there is no image {image}.{did_you_mean(image.name, beside)}")


def _rows(found: Neighbours, query: int) -> list[dict]:
    columns = zip(found.scores[query], found.labels[query], found.ids[query])
    return [
        {"rank": rank, "score": round(float(score), 6), "class": label.item(), "id": name}
        for rank, (score, label, name) in enumerate(columns, 1)
    ]


def _table(image: Path, rows: list[dict]) -> str:
    width = max(len("class"), *(len(str(row["class"])) for row in rows))
    lines = [f"{image}", f"rank   score  {'class':<{width}}  id"]
    lines += [f"{row['rank']:>4}  {row['score']:>6.4f}  {row['class']:<{width}}  {row['id']}" for row in rows]
    return "\n".join(lines)

"""``deepmetric data``: look at a data set, fetch a benchmark, or write one out as a folder of images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jsonargparse import ArgumentParser, Namespace

HELP = "check a data set, download a benchmark, or export one as a folder of images"


def configure(parser: ArgumentParser) -> None:
    from jsonargparse import ArgumentParser as Parser

    from deepmetric.commands.common import DATA_HELP as source
    from deepmetric.data.benchmarks import BENCHMARKS

    names = ", ".join(BENCHMARKS)
    actions = parser.add_subcommands(dest="action")

    check = Parser(
        description="Print items and classes of each split; status 1 if splits share classes, or if what should be a "
        "benchmark is not the whole of it."
    )
    check.add_argument("source", metavar="SOURCE", help=f"{source}; or with ROOT one of {names}")
    check.add_argument("root", nargs="?", metavar="ROOT", help="where the benchmark is")
    actions.add_subcommand(
        "check", check, help="print its splits; status 1 if they are not what they should be"
    )

    download = Parser(description="Download and unpack a benchmark; a download that was cut goes on.")
    download.add_argument("name", metavar="NAME", help=f"one of {names}")
    download.add_argument("root", metavar="ROOT", help="where to; made if it is not there")
    actions.add_subcommand("download", download, help="fetch a benchmark whose licence allows it")

    export = Parser(description="Write FOLDER/SPLIT/CLASS/NAME.png, which any command reads back.")
    export.add_argument("source", metavar="SOURCE", help=source)
    export.add_argument("folder", metavar="FOLDER", help="where to write; a new or empty folder")
    export.add_argument("--split", metavar="NAME", help="train, val or test alone")
    export.add_argument("--per-class", type=int, metavar="N", help="the first N items of each class alone")
    actions.add_subcommand("export", export, help="write it as SPLIT/CLASS/NAME.png")


def run(args: Namespace) -> int:
    actions = {"check": _check, "download": _download, "export": _export}
    return actions[args.action](args[args.action])


def _download(args: Namespace) -> int:
    from deepmetric.data import open_dataset

    print(open_dataset(_benchmark(args.name), root=args.root, download=True).describe())
    return 0


def _benchmark(name: str) -> str:
    from deepmetric.data.benchmarks import BENCHMARKS
    from deepmetric.errors import InputError, did_you_mean

    if name not in BENCHMARKS:
        raise InputError(
            f"no benchmark {name!r}: expected {', '.join(BENCHMARKS)}.{did_you_mean(name, BENCHMARKS)}"
        )
    return name


def _check(args: Namespace) -> int:
    from deepmetric.data import NotTheBenchmark, open_dataset

    source = args.source if args.root is None else f"{_benchmark(args.source)}:{args.root}"
    try:
        dataset = open_dataset(source)
    except NotTheBenchmark as error:
        print(error)
        return 1
    print(dataset.describe())
    shared = dataset.shared_classes()
    for (a, b), names in shared.items():
        more = f", and {len(names) - 1:,} more" if len(names) > 1 else ""
        print(
            f"error: {a} and {b} share the class {names[0]!r}{more}, so {b} does not "
            f"measure classes that {a} never saw. Move all items of a class into one split",
            file=sys.stderr,
        )
    return 1 if shared else 0


def _export(args: Namespace) -> int:
    from collections import Counter
    from pathlib import Path

    from PIL import Image
    from tqdm import tqdm

    from deepmetric.data import open_dataset
    from deepmetric.errors import InputError

    if args.per_class is not None and args.per_class < 1:
        raise InputError(f"--per-class {args.per_class}: expected at least 1")
    folder = Path(args.folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder to write to")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is there already and not empty, and what it holds would be mixed with the images of "
            f"{args.source}. Name a new folder, or empty this one first"
        )
    dataset = open_dataset(args.source)
    if args.split is not None:
        dataset = dataset.split(args.split)
    if args.per_class is not None:
        seen: Counter[tuple[str, int]] = Counter()
        chosen = []
        for i, key in enumerate(zip(dataset.splits.tolist(), dataset.labels.tolist())):
            seen[key] += 1
            if seen[key] <= args.per_class:
                chosen.append(i)
        dataset = dataset.subset(chosen)

    taken: set[Path] = set()
    for i in tqdm(range(len(dataset)), "writing images", leave=False, disable=None):
        label = dataset.classes[int(dataset.labels[i])]
        where = folder.joinpath(str(dataset.splits[i]), *map(_safe, label.split("/")))
        path = next(path for name in _names(dataset.ids[i]) if (path := where / f"{name}.png") not in taken)
        taken.add(path)
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.read(i).permute(1, 2, 0).numpy()).save(path)
    print(f"{len(dataset):,} images in {folder}")
    return 0


def _names(item: str) -> Iterator[str]:
    """File names for an id, the plainest first: its last part, all of it, all of it numbered."""
    from itertools import count

    from deepmetric.data.files import is_image

    name = item.rpartition("/")[2]
    yield _safe(name.rpartition(".")[0] if is_image(name) else name)
    whole = _safe(item.replace("/", "_"))
    yield whole
    yield from (f"{whole}_{number}" for number in count(2))


def _safe(part: str) -> str:
    """A name that stays inside its folder and is not hidden: no separators, no leading dot."""
    part = part.replace("/", "_").replace("\\", "_").replace("\0", "_")
    return "_" + part[1:] if part[:1] in ("", ".") else part

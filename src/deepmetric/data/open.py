"""One word for every source: what a recipe or a command line names -> a dataset."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from deepmetric.data.benchmarks import BENCHMARKS
from deepmetric.data.dataset import Dataset
from deepmetric.errors import InputError, did_you_mean

TABLES = (".csv", ".parquet", ".pq")


def open_dataset(source: str | Path | Dataset, **kwargs: Any) -> Dataset:
    """``"glyphs"``, a folder, a .zip, a .csv or .parquet table, a benchmark, or a dataset (returned as it is).

    A benchmark is its name with its place, ``"cub:data/birds"``, or ``"cub"`` with ``root="data/birds"``: see
    :data:`~deepmetric.data.benchmarks.BENCHMARKS`. ``kwargs`` go to the source's class: :class:`GlyphsDataset`,
    :class:`FolderDataset`, :class:`TableDataset` or the :class:`Benchmark`.

    Raises:
        InputError: nothing is there, it is of no known kind, or an argument that the source does not take.
    """
    if isinstance(source, Dataset):
        if kwargs:
            raise InputError(f"the data is open already, so {', '.join(kwargs)} cannot be applied to it")
        return source
    kind, arguments = _benchmark(source, "root" in kwargs) or _kind(source)
    known = list(signature(kind).parameters)[len(arguments) :]
    for name in kwargs:
        if name not in known:
            raise InputError(
                f"{kind.__name__} takes no {name!r}, only {', '.join(known)}.{did_you_mean(name, known)}"
            )
    return kind(*arguments, **kwargs)


def _benchmark(source: str | Path, with_root: bool) -> tuple[type[Any], tuple[Path, ...]] | None:
    name, colon, root = str(source).partition(":")
    if name not in BENCHMARKS or not (colon or with_root):  # without a root: a folder of that name
        return None
    import deepmetric.data

    return getattr(deepmetric.data, BENCHMARKS[name]), (Path(root),) if colon else ()


def _kind(source: str | Path) -> tuple[type[Any], tuple[Path, ...]]:
    path = Path(source).expanduser()
    if str(source) == "glyphs":  # a folder of that name is ./glyphs
        from deepmetric.data.glyphs import GlyphsDataset

        return GlyphsDataset, ()
    if path.suffix.lower() in TABLES and path.is_file():
        from deepmetric.data.table import TableDataset

        return TableDataset, (path,)
    if path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file()):
        from deepmetric.data.folder import FolderDataset

        return FolderDataset, (path,)
    if path.exists():
        raise InputError(f"{path} is of no known kind: expected a folder, or a .zip, .csv or .parquet file")
    if str(source) in BENCHMARKS:
        raise InputError(f"say where {source} is: {source}:FOLDER, or give root")
    raise InputError(f"no data at {str(source)!r}: expected 'glyphs' or the path of {_there(path)}")


def _there(path: Path) -> str:
    wanted = "a folder, a .zip, .csv or .parquet file."
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return wanted + (did_you_mean(path.name, ["glyphs", *beside]) or f" Nothing near it in {path.parent}")

"""One word for every source: what a recipe or a command line names -> a dataset."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from deepmetric.data.dataset import Dataset
from deepmetric.errors import InputError, did_you_mean

TABLES = (".csv", ".parquet", ".pq")


def open_dataset(source: str | Path | Dataset, **kwargs: Any) -> Dataset:
    """``"glyphs"``, a folder, a .zip, a .csv or .parquet table, or a dataset (returned as it is).

    ``kwargs`` go to the source's class: :class:`GlyphsDataset`, :class:`FolderDataset` or :class:`TableDataset`.

    Raises:
        InputError: nothing is there, it is of no known kind, or an argument that the source does not take.
    """
    if isinstance(source, Dataset):
        if kwargs:
            raise InputError(f"the data is open already, so {', '.join(kwargs)} cannot be applied to it")
        return source
    kind, arguments = _kind(source)
    known = list(signature(kind).parameters)[len(arguments) :]
    for name in kwargs:
        if name not in known:
            raise InputError(
                f"{kind.__name__} takes no {name!r}, only {', '.join(known)}.{did_you_mean(name, known)}"
            )
    return kind(*arguments, **kwargs)


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
    raise InputError(f"no data at {str(source)!r}: expected 'glyphs' or the path of {_there(path)}")


def _there(path: Path) -> str:
    wanted = "a folder, a .zip, .csv or .parquet file."
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return wanted + (did_you_mean(path.name, ["glyphs", *beside]) or f" Nothing near it in {path.parent}")

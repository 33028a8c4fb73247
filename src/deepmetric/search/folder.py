"""A folder that holds one version of some files, and never half of one.

Files carry their generation in the name (``items-3f9c0a1b2d4e.parquet``); ``manifest.json`` names those that
count and is replaced atomically when all are on the disk. A stop at any moment leaves the old generation or
the new one; what is left over of others is removed by the next save.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deepmetric.atomic import sync, sync_tree, write_atomically
from deepmetric.errors import InputError, did_you_mean

MANIFEST = "manifest.json"
FORMAT = 1
# The parts of an index and no other names: what matches is removed. Not twelve digits, which may be somebody's date.
_GENERATION = r"-(?!\d{12})[0-9a-f]{12}"
_OURS = re.compile(
    rf"\.?{re.escape(MANIFEST)}(\.tmp)?"
    rf"|vectors{_GENERATION}\.faiss|items{_GENERATION}\.parquet|model{_GENERATION}"
)


def save_generation(folder: Path, parts: dict[str, Callable[[Path], object]], facts: dict[str, Any]) -> None:
    """Write a new generation and make it the one that counts.

    Args:
        folder: new, empty, or one of this kind.
        parts: file name (``vectors.faiss``, ``items.parquet``, or ``model`` for a folder) -> what writes it to a
            given path.
        facts: for the manifest, JSON.

    Raises:
        InputError: the folder holds other things.
    """
    refuse_other_contents(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generation = "f" + uuid.uuid4().hex[:11]
    files: dict[str, dict[str, Any]] = {}
    for name, write in parts.items():
        path = folder / f"{Path(name).stem}-{generation}{Path(name).suffix}"
        write(path)
        sync_tree(path)
        files[name] = {"path": path.name, "bytes": _size(path)}
    sync(folder)
    manifest = {"format": FORMAT, **facts, "files": files}
    text = json.dumps(manifest, indent=1)
    write_atomically(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf8"))
    _remove_stale(folder, {MANIFEST} | {entry["path"] for entry in files.values()})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts given to :func:`save_generation`, and ``files``.

    Raises:
        InputError: no such folder, no finished generation in it, or one of a newer version of deepmetric.
    """
    if not folder.is_dir():
        near = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise InputError(f"there is no index at {folder}: no such folder.{did_you_mean(folder.name, near)}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf8"))
        version, _ = manifest["format"], manifest["files"]
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no finished index: there is no {MANIFEST}. Make one with `deepmetric index`."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is not the manifest of an index: {error}") from error
    if version != FORMAT:
        raise InputError(
            f"{folder} has format {version}, this deepmetric reads format {FORMAT}: it was made by another version. "
            "Use that one, or make the index again."
        )
    return manifest


def part(folder: Path, manifest: dict[str, Any], name: str) -> Path:
    """The path of one part of a generation, checked to be whole.

    Raises:
        FileNotFoundError: it is not there (any more).
        InputError: it has another size than when it was written.
    """
    entry = manifest["files"][name]
    path = folder / entry["path"]
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing.")
    if _size(path) != entry["bytes"]:
        raise InputError(f"{path.name} has {_size(path):,} bytes and was written with {entry['bytes']:,}.")
    return path


def refuse_other_contents(folder: Path) -> None:
    """Raises InputError when a folder holds anything but generations: it is somebody's, not an index."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; an index is a folder. Give another name.")
    others = (
        sorted(entry.name for entry in folder.iterdir() if not _is_ours(entry)) if folder.is_dir() else []
    )
    if others:
        raise InputError(
            f"{folder} holds other things ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) and no index. "
            "Give a new or empty folder, or that of an index to replace."
        )


def check_names(names: Iterable[str]) -> None:
    """Raises InputError for a name that no parquet file can hold."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"the name {name!r} is not valid UTF-8, and names are written as such. Rename what bears it."
            ) from None


def _is_ours(entry: Path) -> bool:
    if entry.name != MANIFEST:
        return _OURS.fullmatch(entry.name) is not None
    try:  # other programs keep a manifest.json too
        return {"format", "files"} <= json.loads(entry.read_text(encoding="utf8")).keys()
    except (OSError, ValueError, AttributeError):
        return False


def _remove_stale(folder: Path, keep: set[str]) -> None:
    for entry in folder.iterdir():
        if entry.name in keep or not _OURS.fullmatch(entry.name):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())

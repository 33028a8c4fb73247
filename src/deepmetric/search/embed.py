"""The embeddings of a data set as one parquet file, made in shards so that a stop loses one shard at most.

``FILE.parts/`` holds ``manifest.json`` (which model, which items) and finished shards. Each shard is written
atomically; the same command continues after the last of them. At the end they become FILE, and the folder
goes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from deepmetric.atomic import write_atomically
from deepmetric.data import Dataset
from deepmetric.errors import InputError
from deepmetric.evaluation.embed import embed_dataset
from deepmetric.evaluation.inputs import as_embeddings
from deepmetric.search.folder import check_names

SHARD_SIZE = 1024
_DIFFERENCES = {"model": "another model", "items": "other items", "shard_size": "another shard size"}


class Embeddings(NamedTuple):
    """What an embedding file holds, row by row."""

    embeddings: np.ndarray  # float32 [N, d]
    ids: list[str]
    labels: np.ndarray  # str [N], names of classes
    splits: np.ndarray  # str [N]


def embed_to_file(
    model: nn.Module,
    dataset: Dataset,
    file: str | Path,
    *,
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> None:
    """Write a parquet file with the columns ``id``, ``label`` (the class's name), ``split`` (strings) and
    ``embedding`` (a list of d float32).

    An unfinished earlier call for the same file, model and items is continued. A file of that name is
    replaced when the new one is complete.

    Raises:
        InputError: ``FILE.parts`` holds shards of another model, other items or another shard size; what
            :func:`check_target` and embedding raise.
    """
    file = Path(file)
    check_target(file)
    parts = parts_folder(file)
    shards = embed_shards(
        model,
        dataset,
        parts,
        shard_size=shard_size,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )
    write_atomically(file.absolute(), lambda path: _merge(shards, path))
    shutil.rmtree(parts)


def check_target(file: Path) -> None:
    """Raises InputError where no embeddings can be written: a folder, none to write in, the name of another kind."""
    if file.is_dir():
        raise InputError(f"{file} is a folder: name a file in it, such as {file / 'embeddings.parquet'}.")
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: there is no folder {file.parent}.")
    if file.suffix.lower() not in ("", ".parquet"):
        raise InputError(
            f"{file} ends in {file.suffix}, and embeddings are written as parquet alone. Name it "
            f"{file.with_suffix('.parquet')}; pandas.read_parquet reads it."
        )


def parts_folder(file: Path) -> Path:
    """Where the shards of an unfinished ``file`` lie."""
    return file.with_name(file.name + ".parts")


def embed_shards(
    model: nn.Module,
    dataset: Dataset,
    folder: Path,
    *,
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> list[Path]:
    """Make what is missing of a data set's shards in ``folder`` and return all, in the order of the items.

    Raises:
        InputError: the folder holds shards of another model or other items; a name that is not valid UTF-8; a model
            that makes NaN or infinite values (naming the first item); and what embedding raises.
    """
    from tqdm import tqdm

    if shard_size < 1:
        raise InputError(f"shard size is {shard_size}; expected at least 1.")
    if not len(dataset):
        raise InputError("There is nothing to embed: the data set has no items.")
    check_names([*dataset.ids, *dataset.classes])
    _claim(folder, {"model": fingerprint(model), "items": dataset.digest(), "shard_size": shard_size})
    starts = range(0, len(dataset), shard_size)
    # absolute, because pyarrow takes a relative name with a colon for a URI
    shards = [folder.absolute() / f"shard-{number:06}.parquet" for number in range(len(starts))]
    with tqdm(total=len(dataset), desc="embedding", unit="item", disable=not progress) as bar:
        for start, shard in zip(starts, shards):
            items = dataset.subset(np.arange(start, min(start + shard_size, len(dataset))))
            if shard.exists():
                bar.update(len(items))
                bar.initial = bar.n  # so that the speed shown is that of this call
                continue
            rows = embed_dataset(
                model, items, batch_size=batch_size, workers=workers, device=device, progress=bar
            )
            as_embeddings(rows, "embeddings", items.ids)
            table = _table(rows, items)
            write_atomically(shard, lambda path, table=table: pq.write_table(table, path))
    return shards


def read_embeddings(files: Sequence[Path] | Path) -> Embeddings:
    """Read a file of :func:`embed_to_file`, or the shards of :func:`embed_shards`."""
    table = pa.concat_tables(
        [pq.read_table(file.absolute()) for file in ([files] if isinstance(files, Path) else files)]
    )
    column = table["embedding"].combine_chunks()
    return Embeddings(
        column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1),
        table["id"].to_pylist(),
        np.array(table["label"].to_pylist(), dtype=str),
        np.array(table["split"].to_pylist(), dtype=str),
    )


def fingerprint(model: nn.Module) -> str:
    """A hash of what decides a model's embeddings: weights, buffers, preprocessing."""
    digest = hashlib.sha256(repr(getattr(model, "preprocessing", None)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _claim(folder: Path, contents: dict[str, str | int]) -> None:
    manifest = folder / "manifest.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("shard-*")):  # nothing to mix with, whatever an earlier call was about to make
        write_atomically(manifest, lambda path: path.write_text(json.dumps(contents), encoding="utf8"))
        return
    if not manifest.exists():
        raise InputError(f"{folder} holds shards but no manifest.json. Remove the folder to start again.")
    found = json.loads(manifest.read_text(encoding="utf8"))
    differs = [name for name, value in contents.items() if found.get(name) != value]
    if differs:
        what = " and ".join(_DIFFERENCES[name] for name in differs)
        raise InputError(
            f"{folder} holds an unfinished embedding with {what}, and the two cannot be mixed. "
            "Finish that one with its own command, or remove the folder to start again."
        )


def _table(rows: np.ndarray, items: Dataset) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), rows.shape[1])
    return pa.table(
        {
            "id": pa.array(items.ids, pa.string()),
            "label": pa.array([items.classes[label] for label in items.labels], pa.string()),
            "split": pa.array(items.splits.tolist(), pa.string()),
            "embedding": vectors,
        }
    )


def _merge(shards: list[Path], path: Path) -> None:
    with pq.ParquetWriter(path, pq.read_schema(shards[0])) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard))

"""Embeddings in a file: columns, shards, resumption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deepmetric.data import open_dataset
from deepmetric.errors import InputError
from deepmetric.search import embed as embed_module
from deepmetric.search import embed_shards, embed_to_file, read_embeddings


@pytest.fixture
def data(image_folder: Path):
    return open_dataset(image_folder).subset(np.arange(0, 240, 7))  # 35 items


def test_columns(data, small_model, tmp_path: Path) -> None:
    file = tmp_path / "e.parquet"
    embed_to_file(small_model, data, file, shard_size=8)
    table = pq.read_table(file)
    assert table.schema.names == ["id", "label", "split", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    got = read_embeddings(file)
    np.testing.assert_allclose(got.embeddings, small_model.embed(data), atol=1e-6)
    assert got.ids == data.ids
    assert got.labels.tolist() == [data.classes[label] for label in data.labels]
    assert got.splits.tolist() == data.splits.tolist()
    assert [entry.name for entry in tmp_path.iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("shard_size", [1, 34, 35, 1000])
def test_shard_size_does_not_matter(shard_size, data, small_model, tmp_path: Path) -> None:
    embed_to_file(small_model, data, tmp_path / "a", shard_size=shard_size)
    got = read_embeddings(tmp_path / "a")
    np.testing.assert_allclose(got.embeddings, small_model.embed(data), atol=1e-6)
    assert got.ids == data.ids


def stop_after(shards: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let embedding fail after some shards; returns a list that grows by the size of each shard embedded."""
    real, sizes = embed_module.embed_dataset, []

    def failing(model, dataset, **options):
        if len(sizes) == shards:
            raise KeyboardInterrupt
        sizes.append(len(dataset))
        return real(model, dataset, **options)

    monkeypatch.setattr(embed_module, "embed_dataset", failing)
    return sizes


def test_goes_on_after_the_last_shard(data, small_model, tmp_path: Path, monkeypatch, capsys) -> None:
    file = tmp_path / "e.parquet"
    file.write_bytes(b"an older file")
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(small_model, data, file, shard_size=10)
    assert file.read_bytes() == b"an older file"
    (tmp_path / "e.parquet.parts" / ".shard-000002.parquet.tmp").write_bytes(b"half a shard")
    monkeypatch.undo()
    sizes = stop_after(99, monkeypatch)
    embed_to_file(small_model, data, file, shard_size=10, progress=True)
    assert sizes == [10, 5]
    assert read_embeddings(file).ids == data.ids
    assert "35/35" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["weights", "preprocessing", "items", "labels", "shard size"])
def test_never_mixes(change, data, small_model, tmp_path: Path, monkeypatch) -> None:
    from dataclasses import replace

    stop_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(small_model, data, tmp_path / "e", shard_size=10)
    monkeypatch.undo()
    shard_size = 10
    if change == "weights":
        with torch.no_grad():
            next(small_model.parameters()).view(-1)[-1] += 1e-6
    if change == "preprocessing":
        small_model.preprocessing = replace(small_model.preprocessing, resize=18)
    if change == "items":
        data = data.subset(np.arange(34))
    if change == "labels":
        data.labels = data.labels[::-1].copy()
    if change == "shard size":
        shard_size = 11
    message = {"items": "other items", "labels": "other items", "shard size": "another shard size"}
    with pytest.raises(InputError, match=message.get(change, "another model")):
        embed_to_file(small_model, data, tmp_path / "e", shard_size=shard_size)


def test_a_call_that_made_no_shard_claims_nothing(data, small_model, tmp_path: Path, monkeypatch) -> None:
    stop_after(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(small_model, data, tmp_path / "e")
    monkeypatch.undo()
    assert [entry.name for entry in (tmp_path / "e.parts").iterdir()] == ["manifest.json"]
    embed_to_file(small_model, data.subset(np.arange(34)), tmp_path / "e")
    assert len(read_embeddings(tmp_path / "e").ids) == 34


def test_shards_alone(data, small_model, tmp_path: Path) -> None:
    shards = embed_shards(small_model, data, tmp_path / "parts", shard_size=20)
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [20, 15]
    assert read_embeddings(shards).ids == data.ids


def test_wrong_input(data, small_model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        embed_to_file(small_model, data, tmp_path / "missing" / "e.parquet")
    with pytest.raises(InputError, match="is a folder"):
        embed_to_file(small_model, data, tmp_path)
    with pytest.raises(InputError, match=r"ends in \.csv, and .* parquet alone.*e\.parquet"):
        embed_to_file(small_model, data, tmp_path / "e.csv")
    with pytest.raises(InputError, match="shard size is 0"):
        embed_to_file(small_model, data, tmp_path / "e", shard_size=0)
    with pytest.raises(InputError, match="no items"):
        embed_to_file(small_model, data.subset([]), tmp_path / "e")
    (tmp_path / "e.parts").mkdir()
    (tmp_path / "e.parts" / "shard-000000.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"no manifest.json"):
        embed_to_file(small_model, data, tmp_path / "e")


def test_a_relative_name_with_a_colon(data, small_model, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run:3").mkdir()
    embed_to_file(small_model, data, "run:3/e.parquet", shard_size=20)
    assert read_embeddings(Path("run:3/e.parquet")).ids == data.ids


def test_a_diverged_model_writes_nothing(data, small_model, tmp_path: Path) -> None:
    with torch.no_grad():
        next(small_model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match=f"NaN .*item '{data.ids[0]}'"):
        embed_to_file(small_model, data, tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


def test_names_that_are_not_utf8_are_told_before_the_work(
    data, small_model, tmp_path: Path, monkeypatch
) -> None:
    sizes = stop_after(99, monkeypatch)
    data.ids[-1] = "caf\udce9.png"
    with pytest.raises(InputError, match=r"'caf\\udce9.png' is not valid UTF-8"):
        embed_to_file(small_model, data, tmp_path / "e.parquet", shard_size=10)
    assert not sizes

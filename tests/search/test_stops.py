"""A stop at any moment: an index is the old or the new one, and embedding goes on after its last shard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmetric import atomic as atomic_module
from deepmetric.search import Index, embed_to_file, read_embeddings
from deepmetric.search import folder as folder_module


class Stop(BaseException):
    """Not an Exception: nothing may catch it and clean up."""


def put(folder: Path, size: int) -> None:
    Index.build(np.eye(40)[:size], [f"{size}-{i}" for i in range(size)], [size] * size).save(folder)


def check(folder: Path) -> int:
    """The size of the index in the folder, which must be all of one generation."""
    index = Index.load(folder)
    assert index.ids == [f"{len(index)}-{i}" for i in range(len(index))]
    assert (index.labels == len(index)).all()
    assert (index.search(np.eye(40)[: len(index)], k=1).indices[:, 0] == np.arange(len(index))).all()
    return len(index)


# Every function through which save_generation touches the disk; a stop before and after each call of each.
STEPS = [
    (folder_module, "sync_tree", 2),
    (folder_module, "sync", 1),
    (folder_module, "write_atomically", 1),
    (folder_module, "_remove_stale", 1),
    (atomic_module.os, "replace", 1),
    (atomic_module, "sync", 3),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("module", "name", "calls"), STEPS, ids=lambda value: getattr(value, "__name__", value)
)
def test_stop_at_every_step(
    module, name, calls, when, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(module, name)
    for call in range(calls):
        folder = tmp_path / f"index{call}"
        put(folder, 10)
        count = iter(range(calls + 1000))

        def stopping(*args, count=count, call=call):
            now = next(count) == call
            if now and when == "before":
                raise Stop
            real(*args)
            if now:
                raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping)
            with pytest.raises(Stop):
                put(folder, 20)
        assert check(folder) in (10, 20)
        put(folder, 30)
        assert check(folder) == 30
        assert len(list(folder.iterdir())) == 3  # what the stopped one left is gone


def test_stop_of_the_first_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(*args):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_atomically", stopping)
        with pytest.raises(Stop):
            put(tmp_path / "index", 10)
    with pytest.raises(ValueError, match="no finished index"):
        Index.load(tmp_path / "index")
    put(tmp_path / "index", 12)
    assert check(tmp_path / "index") == 12


def test_a_reader_during_replacement_sees_one_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepmetric.search import index as index_module

    folder = tmp_path / "index"
    put(folder, 10)
    real = index_module.read_manifest
    once = iter([True])

    def replaced_meanwhile(path):
        manifest = real(path)
        if next(once, False):
            put(folder, 20)
        return manifest

    monkeypatch.setattr(index_module, "read_manifest", replaced_meanwhile)
    assert check(folder) == 20


def run_until_killed(script: str, until: Callable[[], bool]) -> None:
    """Start Python, wait for its line "go" and then for ``until``, kill -9."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    while not until():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def test_kill_9_while_an_index_is_being_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    rows = 3000
    script = f"""
        import itertools, numpy as np
        from deepmetric.search import Index, embed_to_file, read_embeddings
        x = np.random.default_rng(0).normal(size=({rows}, 64))
        both = [Index.build(x[:n], [f"{{n}}-{{i}}" for i in range(n)], [n] * n) for n in ({rows // 2}, {rows})]
        both[0].save({str(folder)!r})
        print("go", flush=True)
        for index in itertools.cycle(both):
            index.save({str(folder)!r})
    """
    seen = set()
    for trial in range(4):
        delay = 0.05 + 0.05 * trial
        run_until_killed(script, until=lambda delay=delay: time.sleep(delay) or True)
        index = Index.load(folder)
        n = len(index)
        assert n in (rows // 2, rows)
        assert index.ids == [f"{n}-{i}" for i in range(n)]
        assert (index.labels == n).all()
        assert index._engine.ntotal == n
        seen.add(n)
    put(folder, 7)
    assert check(folder) == 7
    assert len(list(folder.iterdir())) == 3


def model_of_seed_0():
    from deepmetric.models import EmbeddingModel

    torch.manual_seed(0)
    return EmbeddingModel(backbone_args={"blocks": 2, "width": 8}, size=16, embedding_dim=8)


def test_kill_9_while_embedding(image_folder: Path, tmp_path: Path) -> None:
    from deepmetric.data import open_dataset

    file, parts = tmp_path / "stopped.parquet", tmp_path / "stopped.parquet.parts"
    script = f"""
        import time, torch
        from deepmetric.data import open_dataset
        from deepmetric.models import EmbeddingModel
        from deepmetric.search import embed_to_file
        torch.manual_seed(0)
        model = EmbeddingModel(backbone_args=dict(blocks=2, width=8), size=16, embedding_dim=8)
        real = model.forward
        model.forward = lambda x: (time.sleep(0.02), real(x))[1]
        print("go", flush=True)
        embed_to_file(model, open_dataset({str(image_folder)!r}), {str(file)!r}, shard_size=10, batch_size=5)
    """
    done: list[dict[str, int]] = []
    for number in (3, 9):
        run_until_killed(script, lambda n=number: len(list(parts.glob("shard-*.parquet"))) >= n)
        assert not file.exists()
        done.append({shard.name: shard.stat().st_mtime_ns for shard in parts.glob("shard-*.parquet")})
    assert 3 <= len(done[0]) < len(done[1]) < 24
    assert done[0].items() <= done[1].items()  # finished shards were not made again

    model, data = model_of_seed_0(), open_dataset(image_folder)
    embed_to_file(model, data, file, shard_size=10, batch_size=5)
    got = read_embeddings(file)
    np.testing.assert_allclose(got.embeddings, model.embed(data), atol=1e-6)
    assert got.ids == data.ids
    assert not parts.exists()

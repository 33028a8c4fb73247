"""The whole chain as a user types it: train, evaluate, embed, index, search, on a folder of images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepmetric.cli import main


def deepmetric(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "deepmetric.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def place(image_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    shutil.copytree(image_folder, folder / "images")
    recipe = folder / "mine.yaml"
    recipe.write_text(
        "model:\n"
        "  class_path: deepmetric.models.EmbeddingModel\n"
        "  init_args:\n"
        "    backbone: deepmetric.models.ConvNet\n"
        "    backbone_args: {blocks: 2, width: 16}\n"
        "    pooling: avg\n"
        "    embedding_dim: 16\n"
        "    size: 16\n"
        "    resize: 16\n"
        "augmentation: null\n"
        "sampler: {init_args: {classes_per_batch: 8}}\n"
        "training: {steps: 60, evaluate_every: 30, workers: 0}\n"
    )
    return folder


def test_from_folder_to_search(place):
    trained = deepmetric(
        "train",
        "data/folder",
        "systems/multi_similarity",
        "mine.yaml",
        "--data.root",
        "images",
        "--run",
        "run",
        cwd=place,
    )
    assert "model: run/model" in trained.stdout

    options = ["--untrained", "--bootstrap", "100", "--ks", "1", "2", "--json"]
    scores = json.loads(deepmetric("evaluate", "run", *options, cwd=place).stdout)
    assert scores["recall@2"] >= scores["recall@1"] > scores["untrained"]["recall@1"]
    low, high = scores["intervals"]["map@r"]
    assert low < scores["map@r"] < high
    assert scores["classes_also_trained_on"] == []

    deepmetric("embed", "run", "images", "-o", "vectors.parquet", cwd=place)
    import pyarrow.parquet as pq

    table = pq.read_table(place / "vectors.parquet")
    assert table.num_rows == 240
    assert len(table["embedding"][0]) == 16

    query = place / "query.png"
    shutil.copy(place / "images/class_07/3.png", query)
    deepmetric("index", "run", "images", "-o", "index", cwd=place)
    shown = deepmetric("search", "index", "query.png", "-k", "5", cwd=place).stdout
    assert "class_07/3.png" in shown.splitlines()[2]  # its own copy is the nearest


def test_a_table_trains_as_easily_as_a_folder(place, tmp_path, monkeypatch):
    rows = ["path,label,split"]
    for image in sorted((place / "images").glob("*/*.png")):
        label = image.parent.name
        split = "train" if label < "class_20" else "validation" if label < "class_25" else "test"
        rows.append(f"images/{label}/{image.name},{label},{split}")
    (place / "items.csv").write_text("\n".join(rows))
    monkeypatch.chdir(place)
    run = tmp_path / "run"
    settings = ["--data.path", "items.csv", "--training.steps", "2", "--schedule.warmup_steps", "0"]
    recipes = ["data/table", "systems/multi_similarity", "mine.yaml"]
    assert main(["train", *recipes, *settings, "--run", str(run)]) == 0
    monkeypatch.chdir(tmp_path)  # the run knows where its table lies
    assert main(["evaluate", str(run)]) == 0


def test_a_second_run_gets_its_own_folder(place, monkeypatch):
    monkeypatch.chdir(place)
    settings = ["--data.root", "images", "--training.steps", "1", "--schedule.warmup_steps", "0"]
    for _ in range(2):
        assert main(["train", "data/folder", "systems/multi_similarity", "mine.yaml", *settings]) == 0
    assert sorted(path.name for path in (place / "runs").iterdir()) == [
        "folder-multi_similarity-mine",
        "folder-multi_similarity-mine-2",
    ]

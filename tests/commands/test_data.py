"""deepmetric data check | export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepmetric.cli import main
from deepmetric.data import FolderDataset, open_dataset


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """train: two classes, one of them nested, file names that clash once their extensions go; test: one."""
    rng = np.random.default_rng(0)
    for name in ("train/a/1.png", "train/a/1.bmp", "train/g/b/x.png", "test/c/1.png", "test/c/2.png"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(path)
    return tmp_path / "source"


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_check(source: Path, capsys):
    assert main(["data", "check", str(source)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 3 items, 2 classes",
        "test: 2 items, 1 class",
        "no class is in two splits",
    ]


def test_check_fails_when_splits_share_classes(source: Path, capsys):
    (source / "test/a").mkdir()
    Image.new("RGB", (2, 2)).save(source / "test/a/9.png")
    assert main(["data", "check", str(source)]) == 1
    captured = capsys.readouterr()
    assert "train and test share 1 class: a" in captured.out
    assert captured.err.startswith("error: train and test share the class 'a', so test")


def test_check_of_nothing(tmp_path: Path, capsys):
    assert main(["data", "check", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: no data at")


def test_export_reads_back_the_same(source: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main(["data", "export", str(source), str(out)]) == 0
    assert capsys.readouterr().out == f"5 images in {out}\n"
    assert written(out) == [
        "test/c/1.png",
        "test/c/2.png",
        "train/a/1.png",
        "train/a/train_a_1.png.png",
        "train/g/b/x.png",
    ]
    before, after = FolderDataset(source), FolderDataset(out)
    assert after.classes == before.classes
    assert sorted(after.splits) == sorted(before.splits)
    originals = {before.read(i).numpy().tobytes() for i in range(5)}
    assert {after.read(i).numpy().tobytes() for i in range(5)} == originals


def test_export_into_an_occupied_folder(source: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert main(["data", "export", str(source), str(out)]) == 0  # an empty one will do
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    for occupied in (out, source):
        assert main(["data", "export", str(source), str(occupied), "--split", "test"]) == 2
        assert f"{occupied} is there already and not empty" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_export_of_one_split_and_a_few_items(source: Path, tmp_path: Path):
    assert (
        main(["data", "export", str(source), str(tmp_path / "out"), "--split", "test", "--per-class", "1"])
        == 0
    )
    assert written(tmp_path / "out") == ["test/c/1.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--split", "tset"], "Did you mean 'test'"), (["--per-class", "0"], "expected at least 1")],
)
def test_wrong_options(source: Path, tmp_path: Path, capsys, options, message):
    assert main(["data", "export", str(source), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_over_a_file(source: Path, tmp_path: Path, capsys):
    (tmp_path / "out").write_text("")
    assert main(["data", "export", str(source), str(tmp_path / "out")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_export_stays_inside_its_folder(tmp_path: Path):
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    rows = [f"{tmp_path}/1.png,../../../up,train", "1.png,.hidden,train", "../{}/1.png,/root,train"]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "\n".join(rows).format(tmp_path.name) + "\n")
    out = tmp_path / "deep/out"
    assert main(["data", "export", str(tmp_path / "t.csv"), str(out)]) == 0
    assert len(list(out.rglob("*.png"))) == 3
    assert len(list(tmp_path.rglob("*.png"))) == 4
    assert len(FolderDataset(out)) == 3


def test_glyphs_exported_and_read_back(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DEEPMETRIC_CACHE", str(tmp_path / "cache"))
    few = open_dataset("glyphs", instances=1, size=16)
    monkeypatch.setattr("deepmetric.data.open_dataset", lambda _: few)
    assert main(["data", "export", "glyphs", str(tmp_path / "out"), "--split", "val"]) == 0
    back, expected = FolderDataset(tmp_path / "out"), few.split("val")
    images = {few.classes[label]: expected.read(i) for i, label in enumerate(expected.labels)}
    assert sorted(back.classes) == sorted(images)
    assert all(torch.equal(back.read(i), images[back.classes[label]]) for i, label in enumerate(back.labels))

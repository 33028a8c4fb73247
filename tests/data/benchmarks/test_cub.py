"""CUB-200-2011: the whole copy, copies that are not whole, and a real partial one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from deepmetric.cli import main
from deepmetric.data import CUB200, ClassSplit, NotTheBenchmark, open_dataset
from deepmetric.errors import InputError

from .conftest import dealt, touch, write_lines

NUMBERS = [*(1 + c for c in dealt(5864, 100)), *(101 + c for c in dealt(5924, 100))]
NAMES = [f"{c:03}.Bird_{c}/Bird_{c}_{i:05}.jpg" for i, c in enumerate(NUMBERS)]


@pytest.fixture(scope="module")
def cub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole benchmark: ROOT/CUB_200_2011/..."""
    root = tmp_path_factory.mktemp("cub")
    write_lists(root / "CUB_200_2011")
    touch(root / "CUB_200_2011/images", NAMES)
    return root


def write_lists(folder: Path, images: int = len(NAMES)) -> None:
    write_lines(folder / "images.txt", (f"{i} {name}" for i, name in enumerate(NAMES[:images], 1)))
    write_lines(folder / "image_class_labels.txt", (f"{i} {c}" for i, c in enumerate(NUMBERS, 1)))
    write_lines(folder / "classes.txt", (f"{c} {c:03}.Bird_{c}" for c in range(1, 201)))
    write_lines(
        folder / "bounding_boxes.txt", (f"{i} {i % 9}.0 2.0 30.0 40.0" for i in range(1, len(NAMES) + 1))
    )


@pytest.fixture
def broken(cub: Path, tmp_path: Path) -> Path:
    """Lists of its own and the images of the whole copy."""
    write_lists(tmp_path)
    (tmp_path / "images").symlink_to(cub / "CUB_200_2011/images")
    return tmp_path


def test_a_closed_folder_beside_the_benchmark(cub: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "the_birds").symlink_to(cub / "CUB_200_2011")

    def closed(function):
        def listing(path):
            if Path(path).name == "lost+found":
                raise PermissionError(13, "Permission denied")
            return function(path)

        return listing

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, closed(getattr(os, name)))
    assert CUB200(tmp_path).name == "CUB-200-2011"


def test_whole(cub: Path):
    data = CUB200(cub)
    assert data.name == "CUB-200-2011"
    assert data.ks == (1, 2, 4, 8, 16, 32)
    assert data.describe().splitlines() == [
        "CUB-200-2011",
        "train: 5,864 items, 100 classes",
        "test: 5,924 items, 100 classes",
        "no class is in two splits",
    ]
    assert data.ids == NAMES
    assert np.array_equal(data.labels, np.array(NUMBERS) - 1)
    test = data.split("test")
    assert test.name == data.name
    assert [data.classes[label] for label in np.unique(test.labels)][::99] == ["101.Bird_101", "200.Bird_200"]
    assert test.boxes is not None
    assert test.boxes.shape == (5924, 4)
    assert test.boxes[0].tolist() == [5865 % 9, 2, 5865 % 9 + 30, 42]


def test_the_folder_itself_or_the_one_above(cub: Path):
    assert CUB200(cub / "CUB_200_2011").ids == open_dataset(f"cub:{cub}").ids


def test_validation_comes_out_of_the_training_classes(cub: Path):
    data = CUB200(cub, split=ClassSplit(val=0.1))
    counts = [len(np.unique(data.split(name).labels)) for name in ("train", "val", "test")]
    assert counts == [90, 10, 100]
    assert data.split("test").ids == CUB200(cub).split("test").ids
    assert data.shared_classes() == {}


def test_one_image_is_missing(broken: Path, cub: Path):
    lost = "images/001.Bird_1"
    (broken / "images").unlink()
    shutil.copytree(cub / "CUB_200_2011/images/001.Bird_1", broken / lost)
    for folder in (cub / "CUB_200_2011/images").iterdir():
        if folder.name != "001.Bird_1":
            (broken / "images" / folder.name).symlink_to(folder)
    CUB200(broken)
    (broken / "images" / NAMES[0]).unlink()
    with pytest.raises(NotTheBenchmark) as error:
        CUB200(broken)
    assert "train: 5,863 of 5,864 images, 100 of 100 classes" in str(error.value)
    assert f"1 listed file is not there, the first images/{NAMES[0]}" in str(error.value)
    assert "partial=True" in str(error.value)
    partial = CUB200(broken, partial=True)
    assert partial.name == "CUB-200-2011 (partial: 11,787 of 11,788 images)"
    assert len(partial) == 11_787


def test_lists_short_of_one_image(broken: Path, capsys):
    write_lists(broken, len(NAMES) - 1)
    assert main(["data", "check", "cub", str(broken)]) == 1
    assert "test: 5,923 of 5,924 images" in capsys.readouterr().out
    assert CUB200(broken, partial=True).name == "CUB-200-2011 (partial: 11,787 of 11,788 images)"


def test_an_image_in_the_class_of_the_other_half(broken: Path):
    moved = [*NUMBERS[:-1], 1]
    write_lines(broken / "image_class_labels.txt", (f"{i} {c}" for i, c in enumerate(moved, 1)))
    with pytest.raises(NotTheBenchmark, match=r"train: 5,865 of 5,864 images[\s\S]*test: 5,923 of 5,924"):
        CUB200(broken)


def test_an_image_listed_twice(broken: Path):
    names = [*NAMES[:-1], NAMES[-2]]
    write_lines(broken / "images.txt", (f"{i} {name}" for i, name in enumerate(names, 1)))
    with pytest.raises(NotTheBenchmark, match="1 images are listed twice"):
        CUB200(broken)


def test_partial_asked_of_a_whole_copy_is_the_benchmark(cub: Path):
    assert CUB200(cub, partial=True).name == "CUB-200-2011"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("images.txt", ["1"], r"images.txt, line 1: expected 2 fields, got '1'"),
        ("images.txt", [], "images.txt is empty"),
        (
            "classes.txt",
            [*(f"{i} bird" for i in range(1, 201)), "one bird"],
            "expected a whole number, got 'one'",
        ),
        ("classes.txt", ["1 only"], "has no class in image_class_labels.txt"),
    ],
)
def test_broken_lists(broken: Path, name, lines, message):
    write_lines(broken / name, lines)
    with pytest.raises(InputError, match=message):
        CUB200(broken)


def test_nothing_of_it_there(tmp_path: Path, capsys):
    with pytest.raises(
        NotTheBenchmark, match=r"neither it nor a folder in it holds images.txt. Expected CUB"
    ):
        CUB200(tmp_path)
    assert main(["data", "check", "cub", str(tmp_path)]) == 1
    assert main(["data", "check", "cub", str(tmp_path / "none")]) == 2
    assert main(["data", "check", "cubb", str(tmp_path)]) == 2
    assert "Did you mean 'cub'" in capsys.readouterr().err


def test_check_of_the_whole(cub: Path, capsys):
    assert main(["data", "check", "cub", str(cub)]) == 0
    assert capsys.readouterr().out.startswith("CUB-200-2011\ntrain: 5,864 items, 100 classes\n")


def test_real_partial_copy(shared_data: Path, capsys):
    zipped = shared_data / "cub40.zip"
    with pytest.raises(NotTheBenchmark) as error:
        open_dataset("cub", root=zipped)
    assert "train: 2,290 of 5,864 images, 40 of 100 classes" in str(error.value)
    assert "test: 0 of 5,924 images, 0 of 100 classes" in str(error.value)
    assert "9,498 listed files are not there" in str(error.value)
    assert main(["data", "check", "cub", str(zipped)]) == 1
    assert "40 of 100 classes" in capsys.readouterr().out

    data = CUB200(zipped, partial=True, split=ClassSplit(test=15, val=5, order="name"))
    assert data.name == "CUB-200-2011 (partial: 40 of 200 classes)"
    assert len(data) == 2_290
    named = {name: (np.unique(data.split(name).labels) + 1).tolist() for name in ("train", "val", "test")}
    assert named == {
        "train": list(range(1, 21)),
        "val": list(range(21, 26)),
        "test": list(range(26, 41)),
    }
    assert data.read(100).shape[0] == 3
    assert data.describe().startswith("CUB-200-2011 (partial: 40 of 200 classes)\n")


def test_real_partial_copy_unpacked(shared_data: Path, tmp_path: Path):
    shutil.unpack_archive(shared_data / "cub40.zip", tmp_path)
    shutil.rmtree(tmp_path / "CUB_200_2011/images/002.Laysan_Albatross")
    image = tmp_path / "CUB_200_2011/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    image.write_bytes(b"")
    with pytest.raises(NotTheBenchmark):
        CUB200(tmp_path, skip_unreadable=True)
    data = CUB200(tmp_path, partial=True, skip_unreadable=True)
    assert data.name == "CUB-200-2011 (partial: 39 of 200 classes)"
    assert len(data.skipped) == 1
    assert data.boxes is not None
    assert data.boxes.shape == (len(data), 4)
    assert "002.Laysan_Albatross" not in {data.classes[label] for label in data.labels}


def test_training_and_evaluation_on_the_real_partial_copy(shared_data: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    small = ["--model.backbone", "deepmetric.models.ConvNet", "--model.size", "32", "--model.resize", "32"]
    steps = ["--training.steps", "2", "--training.workers", "0", "--schedule.warmup_steps", "0"]
    root = ["--data.root", str(shared_data / "cub40.zip")]
    recipes = ["data/cub40", "systems/multi_similarity"]
    assert main(["train", *recipes, *root, *small, *steps, "--run", str(run)]) == 0
    assert "CUB-200-2011 (partial: 40 of 200 classes)" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--bootstrap", "0"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("CUB-200-2011 (partial: 40 of 200 classes), test\n")
    assert "recall@32" in table
    assert "888 queries of 15 classes" in table
    assert main(["evaluate", str(run), "--split", "val", "--bootstrap", "0", "--json", "--ks", "1"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["dataset"] == "CUB-200-2011 (partial: 40 of 200 classes)"
    assert scores["classes_also_trained_on"] == []
    assert [key for key in scores if key.startswith("recall@")] == ["recall@1"]

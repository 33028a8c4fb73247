"""Stanford Online Products at full count."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from deepmetric.data import NotTheBenchmark, StanfordOnlineProducts

from .conftest import dealt, write_lines

GROUPS = ["bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle", "lamp", "mug", "sofa", "stapler"]
GROUPS += ["table", "toaster"]


def rows(split: str) -> list[str]:
    """image_id class_id super_class_id path"""
    images, classes, first_image, first_class = {
        "train": (59551, 11318, 1, 1),
        "test": (60502, 11316, 59552, 11319),
    }[split]
    lines = []
    for i, c in enumerate(dealt(images, classes)):
        group = c % 12
        path = f"{GROUPS[group]}_final/{11_000_000 + c}_{first_image + i}.JPG"
        lines.append(f"{first_image + i} {first_class + c} {group + 1} {path}")
    return lines


def write_lists(folder: Path, train: list[str], test: list[str]) -> Path:
    header = "image_id class_id super_class_id path"
    write_lines(folder / "Ebay_train.txt", [header, *train])
    write_lines(folder / "Ebay_test.txt", [header, *test])
    return folder


def test_whole(tmp_path: Path, stub_listing):
    folder = write_lists(tmp_path / "Stanford_Online_Products", rows("train"), rows("test"))
    stub_listing(tmp_path, set())
    data = StanfordOnlineProducts(tmp_path)
    assert data.describe().splitlines() == [
        "Stanford Online Products",
        "train: 59,551 items, 11,318 classes",
        "test: 60,502 items, 11,316 classes",
        "no class is in two splits",
    ]
    assert data.ks == (1, 10, 100, 1000)
    assert data.categories is not None
    assert sorted(set(data.categories.tolist())) == GROUPS
    # Classes are those of the lists, whatever they are called.
    expected = [line.split()[1] for line in (*rows("train"), *rows("test"))]
    names = [data.classes[label] for label in data.labels]
    assert [name.partition("/")[2] for name in names] == expected
    assert all(name.startswith(f"{group}/") for name, group in zip(names[::1000], data.categories[::1000]))

    gone = rows("test")[5].split()[3]
    stub_listing(tmp_path, {f"Stanford_Online_Products/{gone}"})
    with pytest.raises(NotTheBenchmark, match=f"test: 60,501 of 60,502 images[\\s\\S]*{gone}"):
        StanfordOnlineProducts(tmp_path)
    stub_listing(tmp_path, set())
    write_lists(folder, rows("train")[:-1], rows("test"))
    with pytest.raises(NotTheBenchmark, match="train: 59,550 of 59,551 images, 11,318 of 11,318 classes"):
        StanfordOnlineProducts(tmp_path)
    # A class of the training list once more in the test list.
    wrong = rows("train")[0].replace("1 1 1", "120053 1 1", 1).replace(".JPG", "b.JPG")
    write_lists(folder, rows("train"), [*rows("test")[:-1], wrong])
    with pytest.raises(NotTheBenchmark, match="train and test share 1 classes, the first 'bicycle/1'"):
        StanfordOnlineProducts(tmp_path)


def test_a_partial_copy_in_a_zip(tmp_path: Path):
    write_lists(tmp_path, rows("train")[:30], rows("test")[:30])
    images = [line.split()[3] for line in (*rows("train")[:30], *rows("test")[:30])]
    archive = tmp_path / "Stanford_Online_Products.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("Ebay_train.txt", "Ebay_test.txt"):
            file.write(tmp_path / name, f"Stanford_Online_Products/{name}")
        for name in images[:-1]:
            file.writestr(f"Stanford_Online_Products/{name}", b"")
    data = StanfordOnlineProducts(archive, partial=True)
    assert data.ids == images[:-1]
    classes = len(np.unique(data.labels))
    assert data.name == f"Stanford Online Products (partial: {classes} of 22,634 classes)"

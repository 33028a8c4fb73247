"""iNaturalist 2018 with the published retrieval split, at full count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepmetric.data import INaturalist2018, NotTheBenchmark

from .conftest import dealt, touch, write_lines

GROUPS = ["Aves", "Fungi", "Plantae"]


def paths(split: str) -> list[str]:
    images, classes, first = {"train": (325846, 5690, 0), "test": (136093, 2452, 5690)}[split]
    species = (first + c for c in dealt(images, classes))
    return [f"train_val2018/{GROUPS[c % 3]}/{c}/{split}{i}.jpg" for i, c in enumerate(species)]


def write_lists(folder: Path, train: list[str], test: list[str]) -> None:
    write_lines(folder / "Inaturalist_train_set1.txt", train)
    write_lines(folder / "Inaturalist_test_set1.txt", test)


def test_whole(tmp_path: Path, stub_listing):
    write_lists(tmp_path / "Inat_dataset_splits", paths("train"), paths("test"))
    stub_listing(tmp_path, set())
    data = INaturalist2018(tmp_path)
    assert data.describe().splitlines() == [
        "iNaturalist 2018",
        "train: 325,846 items, 5,690 classes",
        "test: 136,093 items, 2,452 classes",
        "no class is in two splits",
    ]
    assert data.ks == (1, 4, 16, 32)
    assert data.classes[0] == "Aves/0"


def test_a_partial_copy_whose_lists_have_another_root(tmp_path: Path):
    few = {split: paths(split)[:200] for split in ("train", "test")}
    touch(tmp_path, [name for names in few.values() for name in names])
    write_lists(tmp_path, *([f"/data/somebody/{name}" for name in names] for names in few.values()))
    data = INaturalist2018(tmp_path, partial=True)
    assert len(data) == 400
    assert data.name == f"iNaturalist 2018 (partial: {len(np.unique(data.labels))} of 8,142 classes)"
    assert data.categories is not None
    assert set(data.categories.tolist()) <= set(GROUPS)


def test_without_the_lists(tmp_path: Path):
    touch(tmp_path, paths("train")[:3])
    with pytest.raises(NotTheBenchmark, match=r"holds Inat_dataset_splits/Inaturalist_train_set1.txt"):
        INaturalist2018(tmp_path)

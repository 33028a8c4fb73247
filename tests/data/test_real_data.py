"""Real data sets in their original layouts."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmetric.data import ClassSplit, FolderDataset, MPerClassSampler, make_loader, open_dataset
from deepmetric.errors import InputError


def classes(data, name: str) -> int:
    return len(np.unique(data.split(name).labels))


def test_omniglot_by_alphabet(shared_data: Path):
    data = open_dataset(
        shared_data / "omniglot.zip", split=ClassSplit(test=10, val=0, by="group", order="name")
    )
    assert len(data) == 19_280
    assert len(data.classes) == 964
    assert (classes(data, "train"), classes(data, "test")) == (633, 331)
    alphabets = {data.classes[label].split("/")[0] for label in data.labels}
    assert len(alphabets) == 30
    assert len({data.classes[label].split("/")[0] for label in data.split("test").labels}) == 10
    assert data.shared_classes() == {}
    image = data.read(17)
    assert image.shape == (3, 105, 105)
    assert set(image.unique().tolist()) == {0, 255}  # 1 bit, dark on light
    assert (image == 255).float().mean() > 0.8
    with_val = open_dataset(
        shared_data / "omniglot.zip", split=ClassSplit(test=10, val=4, by="group", order="name")
    )
    assert (with_val.split("test").ids) == data.split("test").ids


def test_cifar100_has_its_splits(shared_data: Path):
    data = open_dataset(shared_data / "cifar100.zip")
    assert len(data) == 24_000
    assert data.describe().splitlines() == [
        "train: 15,000 items, 50 classes",
        "test: 9,000 items, 30 classes",
        "no class is in two splits",
    ]
    with pytest.raises(InputError, match="the data has train, test"):
        data.split("val")
    dealt = open_dataset(shared_data / "cifar100.zip", split=ClassSplit(val=0.1))
    assert (classes(dealt, "train"), classes(dealt, "val"), classes(dealt, "test")) == (45, 5, 30)
    assert dealt.split("test").ids == data.split("test").ids


def test_cub_in_its_original_layout(shared_data: Path):
    data = open_dataset(shared_data / "cub40.zip", split=ClassSplit(test=15, val=5, order="name"))
    assert len(data) == 2_292
    assert data.classes[0] == "001.Black_footed_Albatross"
    named = {name: np.unique(data.split(name).labels) + 1 for name in ("train", "val", "test")}
    assert named["train"].tolist() == list(range(1, 21))
    assert named["val"].tolist() == list(range(21, 26))
    assert named["test"].tolist() == list(range(26, 41))
    # Against the benchmark's own lists: every image is in the class they say. Two copies with names of their own are in
    # this archive beyond them.
    with zipfile.ZipFile(shared_data / "cub40.zip") as file:
        names, numbers = (
            dict(line.split() for line in file.read(f"CUB_200_2011/{name}.txt").decode().splitlines())
            for name in ("images", "image_class_labels")
        )
    label_of = {f"CUB_200_2011/images/{names[i]}": int(numbers[i]) - 1 for i in names}
    beyond = [name for name in data.ids if name not in label_of]
    assert [name[-8:] for name in beyond] == ["_rgb.jpg", "_rgb.jpg"]
    assert all(label_of.get(name, label) == label for name, label in zip(data.ids, data.labels))


def test_cub_unpacked_and_zipped_agree(shared_data: Path, tmp_path: Path):
    with zipfile.ZipFile(shared_data / "cub40.zip") as file:
        members = [n for n in file.namelist() if n.endswith(".txt") or "/001." in n or "/002." in n]
        file.extractall(tmp_path, members)
    unpacked = FolderDataset(tmp_path, split=ClassSplit(test=0, val=0))
    zipped = FolderDataset(shared_data / "cub40.zip")
    assert unpacked.ids == zipped.ids[: len(unpacked)]
    assert torch.equal(unpacked.read(30), zipped.read(30))


def test_cub_through_the_sampler_and_workers(shared_data: Path):
    from torchvision.transforms import v2

    data = open_dataset(shared_data / "cub40.zip").with_transform(
        v2.Compose([v2.Resize(64), v2.CenterCrop(64)])
    )
    sampler = MPerClassSampler(data.labels, 5, 4)
    loader = make_loader(data, batch_sampler=list(sampler)[:6], workers=2)
    for batch in loader:
        assert batch.images.shape == (20, 3, 64, 64)
        assert len(batch.labels.unique()) == 5

"""Subsets, splits and what a dataset says of itself."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from deepmetric.data import Dataset, Item
from deepmetric.errors import InputError


class Numbered(Dataset):
    """Image i is filled with i."""

    def load(self, row: int) -> Tensor:
        return torch.full((3, 2, 2), row, dtype=torch.uint8)


def make(splits=("train", "train", "val", "test", "test"), labels=(0, 1, 2, 3, 3), **more) -> Numbered:
    n = len(splits)
    classes = [f"class {i}" for i in range(4)]
    return Numbered([f"item {i}" for i in range(n)], np.array(labels), classes, np.array(splits), **more)


def test_an_item():
    item = make()[3]
    assert isinstance(item, Item)
    assert (item.label, item.index) == (3, 3)
    assert item.image.tolist() == [[[3, 3], [3, 3]]] * 3


def test_a_subset_numbers_its_own_items_and_keeps_the_classes():
    whole = make(categories=np.array(list("abcde")))
    part = whole.subset([4, 1]).subset([1, 0, 1])
    assert part.ids == ["item 1", "item 4", "item 1"]
    assert part.labels.tolist() == [1, 3, 1]
    assert part.classes == whole.classes
    assert part.splits.tolist() == ["train", "test", "train"]
    assert part.categories is not None
    assert part.categories.tolist() == ["b", "e", "b"]
    assert [int(part.read(i)[0, 0, 0]) for i in range(3)] == [1, 4, 1]
    assert part[2].index == 2
    assert len(whole) == 5


def test_a_subset_by_mask_and_an_empty_one():
    mask = np.array([True, False, False, False, True])
    assert make().subset(mask).ids == ["item 0", "item 4"]
    assert len(make().subset([])) == 0
    with pytest.raises(IndexError):
        make().subset([5])
    with pytest.raises(IndexError):
        make().subset(mask[:3])


def test_split():
    assert make().split("test").ids == ["item 3", "item 4"]


@pytest.mark.parametrize(("name", "hint"), [("tset", "Did you mean 'test'"), ("gallery", "train, val, test")])
def test_unknown_split_names_those_there_are(name, hint):
    with pytest.raises(InputError, match=hint):
        make().split(name)


def test_empty_split():
    with pytest.raises(InputError, match="has train, test"):
        make(splits=("train", "test"), labels=(0, 1)).split("val")


def test_transform_is_for_items_and_not_for_read():
    whole = make()
    seen = whole.with_transform(lambda image: image + 1)
    assert int(seen[3].image[0, 0, 0]) == 4
    assert int(seen.read(3)[0, 0, 0]) == 3
    assert int(whole[3].image[0, 0, 0]) == 3
    assert int(seen.split("test")[0].image[0, 0, 0]) == 4


def test_query_and_gallery_are_one_set_unless_told():
    assert make().is_query.all()
    assert make().is_gallery.all()
    apart = make(is_query=np.array([1, 1, 1, 1, 0]), is_gallery=np.array([1, 1, 1, 0, 1]))
    assert apart.split("test").is_query.tolist() == [True, False]
    assert apart.split("test").is_gallery.tolist() == [False, True]
    assert "test: 2 items, 1 class, 1 query, 1 in the gallery" in apart.describe()


def test_disjoint_splits():
    assert make().shared_classes() == {}
    assert make().describe().splitlines() == [
        "train: 2 items, 2 classes",
        "val: 1 item, 1 class",
        "test: 2 items, 1 class",
        "no class is in two splits",
    ]


def test_shared_classes_are_named():
    leaky = make(labels=(0, 1, 1, 3, 0))
    assert leaky.shared_classes() == {("train", "val"): ["class 1"], ("train", "test"): ["class 0"]}
    assert "train and test share 1 class: class 0" in leaky.describe()
    assert "no class is in two splits" not in leaky.describe()


def test_pickling():
    copy = pickle.loads(pickle.dumps(make().split("test")))
    assert copy.ids == ["item 3", "item 4"]
    assert int(copy.read(1)[0, 0, 0]) == 4


def test_a_source_that_forgot_to_load():
    plain = Dataset(["x"], np.array([0]), ["c"], np.array(["train"]))
    with pytest.raises(NotImplementedError, match="must implement load"):
        plain.read(0)


def test_importing_is_cheap():
    code = (
        "import sys, deepmetric.data; assert 'torch' not in sys.modules; deepmetric.data.MPerClassSampler; "
        "print([m for m in ('torchvision', 'PIL', 'pyarrow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import deepmetric.data

    for name in deepmetric.data.__all__:
        assert getattr(deepmetric.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'FolderDatset'"):
        deepmetric.data.__getattr__("FolderDatset")


def test_renumbered_classes_are_those_with_items():
    data = make(labels=(3, 1, 3, 0, 2))
    train = data.split("train").with_classes_renumbered()
    assert train.classes == [data.classes[1], data.classes[3]]
    assert [train[i].label for i in range(2)] == [1, 0]
    assert int(train[1].image[0, 0, 0]) == 1
    assert data.labels.tolist() == [3, 1, 3, 0, 2]

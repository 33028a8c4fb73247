"""Folds share no class between training and validation, and every training class validates once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmetric.data import ClassSplit, Dataset, FoldDataset, FolderDataset
from deepmetric.errors import InputError


def dataset(labels: list[int], splits: list[str]) -> Dataset:
    ids = [f"item {i}" for i in range(len(labels))]
    return Dataset(ids, np.array(labels), [f"class {c}" for c in range(max(labels) + 1)], np.array(splits))


@given(
    st.integers(2, 6),
    st.lists(st.sampled_from(["train", "val", "test"]), min_size=12, max_size=40),
    st.randoms(),
)
def test_every_training_class_validates_in_one_fold_and_trains_in_the_others(folds, split_of_class, random):
    split_of_class = [*split_of_class, *["train"] * folds]
    items = [label for label in range(len(split_of_class)) for _ in range(random.randint(1, 3))]
    random.shuffle(items)
    whole = dataset(items, [split_of_class[label] for label in items])
    trained = {label for label, split in enumerate(split_of_class) if split != "test"}
    validated: list[int] = []
    for fold in range(folds):
        data = FoldDataset(lambda: whole, fold, folds)
        assert data.shared_classes() == {}
        train, val = (set(data.labels[data.splits == name].tolist()) for name in ("train", "val"))
        assert train | val == trained
        assert sorted(val) == [
            label for label in sorted(trained) if min(val) <= label <= max(val)
        ]  # contiguous
        assert len(trained) // folds <= len(val) <= len(trained) // folds + 1
        assert ((data.splits == "test") == (whole.splits == "test")).all()
        validated += sorted(val)
    assert validated == sorted(trained)


def test_one_fold_trains_on_all_training_classes():
    whole = dataset([0, 0, 1, 2, 3, 3], ["train", "train", "val", "train", "test", "test"])
    data = FoldDataset(lambda: whole, 0, folds=1)
    assert data.splits.tolist() == ["train"] * 4 + ["test"] * 2


def test_as_in_the_paper_for_cub():
    """CUB's validation classes, in the paper's code: 0-24, 25-49, 50-74, 75-99 (the last is its fold 0)."""
    whole = dataset(list(range(200)), ["train"] * 100 + ["test"] * 100)
    for fold in range(4):
        data = FoldDataset(lambda: whole, fold)
        assert data.labels[data.splits == "val"].tolist() == list(range(25 * fold, 25 * fold + 25))


def test_items_are_those_of_the_source(image_folder: Path):
    source = FolderDataset(image_folder, split=ClassSplit(test=6, val=4, order="name"))
    data = FoldDataset(lambda: source.subset(np.arange(0, len(source), 2)), 1, 3)
    for i in (0, 7, len(data) - 1):
        assert (data[i].image == source[2 * i].image).all()
        assert data.ids[i] == source.ids[2 * i]


def test_recall_is_measured_at_the_k_of_the_source():
    whole = dataset([0, 1, 2], ["train", "train", "test"])
    whole.ks = (1, 10, 100, 1000)
    assert FoldDataset(lambda: whole, 0, folds=2).ks == (1, 10, 100, 1000)


@pytest.mark.parametrize(
    ("labels", "splits", "fold", "folds", "said"),
    [
        ([0, 1, 2], ["train", "train", "test"], 0, 3, "2 training classes cannot be cut into 3"),
        ([0, 1, 1, 2], ["train", "train", "test", "train"], 0, 2, "class 1"),
        ([0, 1, 2], ["train", "train", "test"], 2, 2, "fold=2"),
        ([0, 1, 2], ["train", "train", "test"], 0, 0, "folds=0"),
    ],
)
def test_refused(labels, splits, fold, folds, said):
    with pytest.raises(InputError, match=said):
        FoldDataset(lambda: dataset(labels, splits), fold, folds)

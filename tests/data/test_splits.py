"""Classes are dealt whole, the same way everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmetric.data.splits import ClassSplit, item_splits, natural_key
from deepmetric.errors import InputError


def names(n: int) -> list[str]:
    return [f"c{i}" for i in range(n)]


def counts(split: ClassSplit, n: int) -> tuple[int, ...]:
    dealt = list(split.deal(names(n)).values())
    return tuple(dealt.count(name) for name in ("train", "val", "test"))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (ClassSplit(), (60, 15, 25)),
        (ClassSplit(test=10, val=0), (90, 0, 10)),
        (ClassSplit(test=0, val=0), (100, 0, 0)),
        (ClassSplit(test=0.001, val=0.001), (98, 1, 1)),  # a share above 0 is at least one class
    ],
)
def test_counts(split, expected):
    assert counts(split, 100) == expected


def test_order_by_name_is_natural_and_ends_in_test():
    dealt = ClassSplit(test=3, val=2, order="name").deal(names(12))
    assert [name for name in dealt if dealt[name] == "test"] == ["c9", "c10", "c11"]
    assert [name for name in dealt if dealt[name] == "val"] == ["c7", "c8"]


def test_random_order_is_fixed_for_all_time():
    dealt = ClassSplit(test=2, val=1).deal(names(8))
    assert [name for name in dealt if dealt[name] == "test"] == ["c0", "c1"]
    assert [name for name in dealt if dealt[name] == "val"] == ["c3"]


def test_the_seed_changes_the_random_order_and_the_order_of_names_does_not():
    assert ClassSplit().deal(names(40)) == ClassSplit().deal(names(40)[::-1])
    assert ClassSplit().deal(names(40)) != ClassSplit(seed=1).deal(names(40))


def test_groups_stay_whole():
    classes = [f"g{group}/c{i}" for group in range(10) for i in range(group + 1)]
    dealt = ClassSplit(test=2, val=1, by="group", order="name").deal(classes)
    assert {name.split("/")[0] for name in classes if dealt[name] == "test"} == {"g8", "g9"}
    assert {name.split("/")[0] for name in classes if dealt[name] == "val"} == {"g7"}
    assert {name.split("/")[0] for name in classes if dealt[name] == "train"} == {f"g{i}" for i in range(7)}


def test_groups_without_nesting_are_refused():
    with pytest.raises(InputError, match="by='class'"):
        ClassSplit(by="group").deal(names(5))


@pytest.mark.parametrize(("test", "val"), [(3, 0), (2, 1), (0.9, 0.2), (100, 0)])
def test_nothing_left_to_train_on(test, val):
    with pytest.raises(InputError, match="leave one to train on"):
        ClassSplit(test=test, val=val).deal(names(3))


@pytest.mark.parametrize(
    "bad", [{"test": -1}, {"test": 1.0}, {"val": 1.5}, {"by": "alphabet"}, {"order": "size"}, {"val": True}]
)
def test_wrong_arguments(bad):
    with pytest.raises(InputError, match="ClassSplit"):
        ClassSplit(**bad)


@given(st.integers(10, 60), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 5))
def test_every_class_is_dealt_once(n, test, val, seed):
    train, in_val, in_test = counts(ClassSplit(test=test, val=val, seed=seed), n)
    assert train + in_val + in_test == n
    assert train >= 1
    assert (in_test > 0) == (test > 0)
    assert (in_val > 0) == (val > 0)


LABELS = np.repeat(np.arange(10), 2)


def test_no_given_splits_are_dealt_by_default():
    splits = item_splits(LABELS, names(10), None, None)
    dealt = ClassSplit().deal(names(10))
    assert splits.tolist() == [dealt[f"c{label}"] for label in LABELS]


def test_given_splits_are_kept():
    given_splits = np.where(LABELS < 6, "train", "test")
    assert (item_splits(LABELS, names(10), given_splits, None) == given_splits).all()


def test_val_is_dealt_out_of_train_alone():
    given_splits = np.where(LABELS < 6, "train", "test")
    splits = item_splits(LABELS, names(10), given_splits, ClassSplit(test=4, val=2, order="name"))
    assert splits[::2].tolist() == ["train"] * 4 + ["val"] * 2 + ["test"] * 4


def test_test_is_dealt_where_only_train_is_given():
    given_splits = np.full(20, "train")
    splits = item_splits(LABELS, names(10), given_splits, ClassSplit(test=3, val=2, order="name"))
    assert splits[::2].tolist() == ["train"] * 5 + ["val"] * 2 + ["test"] * 3


def test_a_class_shared_by_train_and_test_keeps_its_test_items():
    labels = np.array([0, 0, 1, 1, 2, 2])
    given_splits = np.array(["train", "test"] * 3)
    splits = item_splits(labels, names(3), given_splits, ClassSplit(val=1, order="name"))
    assert splits.tolist() == ["train", "test", "train", "test", "val", "test"]


@pytest.mark.parametrize("there", [("train", "val", "test"), ("val", "test")])
def test_nothing_to_deal(there):
    labels = np.arange(len(there))
    with pytest.raises(InputError, match="Leave split out"):
        item_splits(labels, names(3), np.array(there), ClassSplit())


def test_natural_order_is_total():
    mixed = ["10", "9", "a1", "a01", "a10", "a2", "²", "", "1a", "a"]
    backwards = mixed[::-1]
    assert sorted(mixed, key=natural_key) == sorted(backwards, key=natural_key)
    assert sorted(["10", "9"], key=natural_key) == ["9", "10"]

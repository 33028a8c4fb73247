"""How classes are dealt to train, validation and test, so that each is measured on classes it never saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np

from deepmetric.errors import InputError

SPLITS = ("train", "val", "test")
SPELLINGS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key under which ``class2`` comes before ``class10``.

    >>> sorted(["b10", "b9", "a"], key=natural_key)
    ['a', 'b9', 'b10']
    """
    # [0-9] and not \d: int() also takes other scripts' digits, but "²" is a \d-like trap in isdigit().
    parts: list[str | int] = list(re.split(r"([0-9]+)", name))
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, name


@dataclass(frozen=True)
class ClassSplit:
    """Deals whole classes to splits: an item's class decides where it goes, so splits never share a class.

    Args:
        test, val: how many classes (int) or which share of them (float in [0, 1), at least one class when above 0).
        by: ``"group"`` deals whole top folders of nested classes (the alphabets of Omniglot) and counts these.
        order: ``"name"`` sorts by name (numbers by value): the first classes train, the next validate, the LAST test.
            ``"random"`` orders by a hash of seed and name, the same on every machine.
        seed: of the random order.

    Where the source has splits of its own, only those that it lacks are dealt, out of its train classes.

    >>> ClassSplit(test=1, val=1, order="name").deal(["c1", "c2", "c10"])
    {'c1': 'train', 'c2': 'val', 'c10': 'test'}
    """

    test: int | float = 0.25
    val: int | float = 0.15
    by: Literal["class", "group"] = "class"
    order: Literal["random", "name"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, size in (("test", self.test), ("val", self.val)):
            if isinstance(size, bool) or not isinstance(size, (int, float)):
                raise InputError(f"ClassSplit: {name} is {size!r}; expected a number of classes or a share")
            if size < 0 or (isinstance(size, float) and not size < 1):
                raise InputError(
                    f"ClassSplit: {name}={size} is not a number of classes (0, 1, 2, ...) nor a share in [0, 1)"
                )
        for name, value, choices in (
            ("by", self.by, ("class", "group")),
            ("order", self.order, ("random", "name")),
        ):
            if value not in choices:
                raise InputError(f"ClassSplit: {name}={value!r}; expected one of {', '.join(choices)}")

    def deal(self, classes: Sequence[str], lacking: Sequence[str] = ("val", "test")) -> dict[str, str]:
        """The split of each class; of ``val`` and ``test`` only those in ``lacking`` are dealt.

        Raises:
            InputError: no class would be left to train on, or ``by="group"`` and no class has a group.
        """
        if self.by == "group" and not any("/" in name for name in classes):
            raise InputError(
                "ClassSplit: by='group' needs nested classes (group/class/image), and no class here is nested, "
                f"for example {classes[0]!r}. Use by='class'"
            )
        unit = {name: name.split("/")[0] if self.by == "group" else name for name in classes}
        units = sorted(set(unit.values()), key=natural_key)
        if self.order == "random":
            units.sort(key=self._hash)
        val, test = (self._count(name, len(units), lacking) for name in ("val", "test"))
        train = len(units) - val - test
        if train < 1:
            what = "groups" if self.by == "group" else "classes"
            raise InputError(
                f"ClassSplit: {len(units)} {what} cannot give {val} to val and {test} to test and leave one to "
                "train on. Ask for fewer (val=0 makes no validation split)"
            )
        split = dict(zip(units, ["train"] * train + ["val"] * val + ["test"] * test))
        return {name: split[unit[name]] for name in classes}

    def _count(self, split: str, total: int, lacking: Sequence[str]) -> int:
        size = self.val if split == "val" else self.test
        if split not in lacking or not size:
            return 0
        return size if isinstance(size, int) else max(1, round(size * total))

    def _hash(self, name: str) -> bytes:
        return blake2b(f"{self.seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def item_splits(
    labels: np.ndarray, classes: Sequence[str], given: np.ndarray | None, split: ClassSplit | None
) -> np.ndarray:
    """The split name of every item.

    Args:
        labels: int64 [N], indices into ``classes``.
        given: str [N], what the source itself says, or None when it says nothing.
        split: None keeps what is given, and without it deals by ``ClassSplit()``.

    Raises:
        InputError: ``split`` is given and the source already has all three, or has no train to deal from.
    """
    if given is None:
        dealt = (split or ClassSplit()).deal(classes)
        return np.array([dealt[name] for name in classes], dtype="<U5")[labels]
    if split is None:
        return given.astype("<U5")
    there = set(given.tolist())
    lacking = [name for name in ("val", "test") if name not in there]
    if not lacking or "train" not in there:
        raise InputError(
            f"split: {split} has nothing to deal: the source has the splits {', '.join(sorted(there))} itself. "
            "Leave split out"
        )
    in_train = given == "train"
    names = [classes[int(label)] for label in np.unique(labels[in_train])]
    dealt = split.deal(names, lacking)
    of_label = np.array([dealt.get(name, "train") for name in classes], dtype="<U5")
    return np.where(in_train, of_label[labels], given).astype("<U5")

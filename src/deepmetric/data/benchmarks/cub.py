"""CUB-200-2011: birds."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deepmetric.data.benchmarks.base import Benchmark
from deepmetric.data.benchmarks.check import Listed
from deepmetric.data.benchmarks.copy import Copy
from deepmetric.data.benchmarks.download import Archive
from deepmetric.errors import InputError


class CUB200(Benchmark):
    """CUB-200-2011 (Wah et al., 2011): 11,788 photos of 200 kinds of birds.

    Classes 1-100 train and 101-200 test, as Song et al. (CVPR 2016) and all since; ``train_test_split.txt``, which
    splits each class, is not used. Non-commercial research and education only. Arguments: see :class:`Benchmark`.
    """

    title = "CUB-200-2011"
    ks = (1, 2, 4, 8, 16, 32)
    published: ClassVar = {
        "train": {"images": 5864, "classes": 100},
        "test": {"images": 5924, "classes": 100},
    }
    layout = "CUB_200_2011/ with images.txt, image_class_labels.txt, classes.txt and images/CLASS/FILE.jpg"
    source = (
        "download=True, or `deepmetric data download cub ROOT`, or unpack CUB_200_2011.tgz from "
        "https://data.caltech.edu/records/65de6-vp158"
    )
    archives = (
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
        ),
    )

    @staticmethod
    def listed(copy: Copy) -> Listed:
        base, _ = copy.find_or_refuse("images.txt")
        paths = dict(copy.table(f"{base}images.txt", 2))
        names = dict(copy.table(f"{base}classes.txt", 2))
        class_of = dict(copy.table(f"{base}image_class_labels.txt", 2))
        for number in paths:
            if class_of.get(number) not in names:
                raise InputError(
                    f"{copy.files.path(base)}: image {number} of images.txt has no class in image_class_labels.txt "
                    "and classes.txt. Take the three from the original archive again"
                )
        numbers = np.array([copy.whole_number(class_of[i], f"{base}image_class_labels.txt") for i in paths])
        order = sorted(names, key=lambda number: copy.whole_number(number, f"{base}classes.txt"))
        label_of = {int(number): label for label, number in enumerate(order)}
        return Listed(
            ids=list(paths.values()),
            files=[f"{base}images/{path}" for path in paths.values()],
            labels=np.array([label_of[number] for number in numbers.tolist()], dtype=np.int64),
            classes=[names[number] for number in order],
            splits=np.where(numbers <= 100, "train", "test"),
            boxes=_boxes(copy, f"{base}bounding_boxes.txt", list(paths)),
        )


def _boxes(copy: Copy, name: str, images: list[str]) -> np.ndarray | None:
    if not copy.has(name):  # nothing in the protocol needs them
        return None
    of = {row[0]: row[1:] for row in copy.table(name, 5)}
    x, y, width, height = np.array([of.get(i, [np.nan] * 4) for i in images], dtype=np.float32).T
    return np.stack([x, y, x + width, y + height], axis=1)

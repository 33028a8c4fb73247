"""Stanford Online Products."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deepmetric.data.benchmarks.base import Benchmark
from deepmetric.data.benchmarks.check import Listed, numbered
from deepmetric.data.benchmarks.copy import Copy
from deepmetric.data.benchmarks.download import Archive
from deepmetric.data.splits import natural_key

LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}


class StanfordOnlineProducts(Benchmark):
    """Stanford Online Products (Song et al., CVPR 2016): 120,053 photos of 22,634 things sold on eBay.

    A class is one thing, named ``bicycle/1`` after its super-class and number; ``categories`` holds the 12
    super-classes. Split as ``Ebay_train.txt`` and ``Ebay_test.txt`` say. Arguments: see :class:`Benchmark`.
    """

    title = "Stanford Online Products"
    ks = (1, 10, 100, 1000)
    published: ClassVar = {
        "train": {"images": 59551, "classes": 11318},
        "test": {"images": 60502, "classes": 11316},
    }
    layout = "Stanford_Online_Products/ with Ebay_train.txt, Ebay_test.txt and bicycle_final/FILE.JPG ..."
    source = (
        "download=True, or `deepmetric data download sop ROOT`, or unpack Stanford_Online_Products.zip from "
        "https://cvgl.stanford.edu/projects/lifted_struct"
    )
    archives = (
        Archive(
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
            "7f73d41a2f44250d4779881525aea32e",
        ),
    )

    @staticmethod
    def listed(copy: Copy) -> Listed:
        base, _ = copy.find_or_refuse(LISTS["train"])
        rows = {split: copy.table(base + name, 4, skip=1) for split, name in LISTS.items()}
        # image_id class_id super_class_id path
        paths = [row[3] for part in rows.values() for row in part]
        numbers = [row[1] for part in rows.values() for row in part]
        categories = [path.partition("/")[0].removesuffix("_final") for path in paths]
        names = [f"{category}/{number}" for category, number in zip(categories, numbers)]
        classes = sorted(set(names), key=natural_key)
        return Listed(
            ids=paths,
            files=[base + path for path in paths],
            labels=numbered(names, classes),
            classes=classes,
            splits=np.repeat(list(rows), [len(part) for part in rows.values()]),
            categories=np.array(categories),
        )

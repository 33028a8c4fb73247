"""iNaturalist 2018, split for retrieval."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deepmetric.data.benchmarks.base import Benchmark
from deepmetric.data.benchmarks.check import Listed, numbered
from deepmetric.data.benchmarks.copy import Copy
from deepmetric.data.benchmarks.download import Archive
from deepmetric.data.splits import natural_key
from deepmetric.errors import InputError

FOLDERS = ("Inat_dataset_splits/", "")


class INaturalist2018(Benchmark):
    """iNaturalist 2018 (Van Horn et al., CVPR 2018) with the retrieval split of Brown et al. (Smooth-AP, ECCV 2020).

    461,939 photos of 8,142 species, the challenge's training and validation images together; 5,690 species train and
    2,452 test, as ``Inaturalist_train_set1.txt`` and ``Inaturalist_test_set1.txt`` say. A class is named ``Aves/3100``
    after its group of species and number; ``categories`` holds the group. Arguments: see :class:`Benchmark`.

    ``download`` fetches the images (120 GB, and as much again unpacked), not the two lists.
    """

    title = "iNaturalist 2018"
    ks = (1, 4, 16, 32)
    published: ClassVar = {
        "train": {"images": 325846, "classes": 5690},
        "test": {"images": 136093, "classes": 2452},
    }
    layout = (
        "Inat_dataset_splits/ with Inaturalist_train_set1.txt and Inaturalist_test_set1.txt, and "
        "train_val2018/GROUP/SPECIES/FILE.jpg"
    )
    source = (
        "the lists from https://github.com/Andrew-Brown1/Smooth_AP (under Data); the images with download=True, or "
        "`deepmetric data download inat18 ROOT`, or unpack train_val2018.tar.gz from "
        "https://github.com/visipedia/inat_comp/tree/master/2018"
    )
    archives = (
        # The checksum is torchvision's.
        Archive(
            "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/train_val2018.tar.gz",
            "b1c6952ce38f31868cc50ea72d066cc3",
        ),
    )

    @staticmethod
    def listed(copy: Copy) -> Listed:
        base, name = copy.find_or_refuse(*(f"{folder}Inaturalist_train_set1.txt" for folder in FOLDERS))
        lists = [base + name, base + name.replace("_train_", "_test_")]
        parts = [[row[0] for row in copy.table(one, 1)] for one in lists]
        # The last three parts: some lists in circulation begin with a folder of their maker.
        paths = [path.split("/")[-3:] for part in parts for path in part]
        for path in paths:
            if len(path) < 3:
                raise InputError(
                    f"{copy.files.path(lists[0])} or {lists[1]}: expected GROUP/SPECIES/FILE.jpg at the end of each "
                    f"line, got {'/'.join(path)!r}. Take the lists from their source again"
                )
        ids = ["/".join(path) for path in paths]
        names = [f"{group}/{species}" for group, species, _ in paths]
        classes = sorted(set(names), key=natural_key)
        return Listed(
            ids=ids,
            files=[f"{base}train_val2018/{path}" for path in ids],
            labels=numbered(names, classes),
            classes=classes,
            splits=np.repeat(["train", "test"], [len(part) for part in parts]),
            categories=np.array([group for group, _, _ in paths]),
        )

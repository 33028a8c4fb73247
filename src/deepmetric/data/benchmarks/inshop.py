"""In-Shop Clothes Retrieval, of DeepFashion."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deepmetric.data.benchmarks.base import Benchmark
from deepmetric.data.benchmarks.check import Listed, numbered
from deepmetric.data.benchmarks.copy import Copy
from deepmetric.errors import InputError

LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
STATUSES = ("train", "query", "gallery")


class InShop(Benchmark):
    """In-Shop Clothes Retrieval (Liu et al., DeepFashion, CVPR 2016): 52,712 photos of 7,982 clothes.

    A class is one item of clothing; ``categories`` holds its kind, such as ``WOMEN/Dresses``. In the test split
    queries and gallery are two sets, by ``is_query`` and ``is_gallery``: a query is searched in the gallery alone, and
    nothing is left out of its ranking. Arguments: see :class:`Benchmark`.
    """

    title = "In-Shop Clothes Retrieval"
    ks = (1, 10, 20, 30, 40, 50)
    published: ClassVar = {
        "train": {"images": 25882, "classes": 3997},
        "test": {"images": 26830, "classes": 3985, "queries": 14218, "gallery": 12612},
    }
    layout = "Eval/list_eval_partition.txt with img/WOMEN/... (or Img/img/..., or img_highres/...)"
    source = (
        "its owners give it to those who sign their agreement: "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html; unpack img.zip beside Eval/"
    )

    @staticmethod
    def listed(copy: Copy) -> Listed:
        base, name = copy.find_or_refuse(*LISTS)
        rows = copy.table(base + name, 3, skip=2)  # the number of images, then the names of the columns
        paths, items, statuses = (list(column) for column in zip(*rows))
        for number, status in enumerate(statuses):
            if status not in STATUSES:
                raise InputError(
                    f"{copy.files.path(base + name)}: {paths[number]} has the status {status!r}; expected "
                    f"{', '.join(STATUSES)}. Take the file from the original archive again"
                )
        status = np.array(statuses)
        classes = sorted(set(items))
        return Listed(
            ids=paths,
            files=_files(copy, base, paths),
            labels=numbered(items, classes),
            classes=classes,
            splits=np.where(status == "train", "train", "test"),
            is_query=status != "gallery",
            is_gallery=status != "query",
            categories=np.array(["/".join(path.split("/")[1:3]) for path in paths]),
        )


def _files(copy: Copy, base: str, paths: list[str]) -> list[str]:
    """Where the images are: the list says img/..., and copies have them in several places."""
    places = [[base + path for path in paths], [f"{base}Img/{path}" for path in paths]]
    places += [
        [f"{base}{above}img_highres/{path.partition('/')[2]}" for path in paths] for above in ("", "Img/")
    ]
    return max(places, key=lambda files: sum(copy.files.present(files)))  # of equals the first

"""Cars-196: makes and models."""

from __future__ import annotations

from io import BytesIO
from typing import Any, ClassVar

import numpy as np

from deepmetric.data.benchmarks.base import Benchmark
from deepmetric.data.benchmarks.check import Listed
from deepmetric.data.benchmarks.copy import Copy
from deepmetric.errors import InputError

# The second is how a mirror packs it.
DEVKITS = ("devkit/cars_train_annos.mat", "car_devkit/devkit/cars_train_annos.mat")
LABELLED_TEST = "cars_test_annos_withlabels.mat"
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


class Cars196(Benchmark):
    """Cars-196 (Krause et al., 2013): 16,185 photos of 196 models of cars.

    Classes 1-98 train and 99-196 test, as Song et al. (CVPR 2016) and all since. The archives' parts ``cars_train`` and
    ``cars_test`` split the images of each class, for classification: here they are joined, then split by class. Two
    layouts: ``cars_annos.mat`` with ``car_ims/``, and ``cars_train/``, ``cars_test/`` with ``devkit/``. Arguments: see
    :class:`Benchmark`.
    """

    title = "Cars-196"
    ks = (1, 2, 4, 8, 16, 32)
    published: ClassVar = {
        "train": {"images": 8054, "classes": 98},
        "test": {"images": 8131, "classes": 98},
    }
    layout = (
        "cars_annos.mat with car_ims/000001.jpg, or cars_train/00001.jpg and cars_test/00001.jpg with "
        f"devkit/cars_train_annos.mat, devkit/cars_meta.mat and {LABELLED_TEST}"
    )
    source = (
        "its first home (ai.stanford.edu/~jkrause/cars) is gone; take car_ims.tgz and cars_annos.mat, or "
        f"cars_train.tgz, cars_test.tgz, car_devkit.tgz and {LABELLED_TEST}, from a mirror such as Kaggle's"
    )

    @staticmethod
    def listed(copy: Copy) -> Listed:
        joined, parts = copy.find("cars_annos.mat"), copy.find(*DEVKITS)
        if joined is not None:
            listed = _joined(copy, *joined)
            # A mirror packs this list beside the two parts, without the folder that it leads to.
            if parts is None or any(copy.files.present(listed.files)):
                return listed
        return _parts(copy, *copy.find_or_refuse(*DEVKITS, "cars_annos.mat"))


def _joined(copy: Copy, base: str, name: str) -> Listed:
    mat = _load(copy, base + name)
    rows = _rows(copy, base + name, mat, "relative_im_path")
    paths = [str(row["relative_im_path"]) for row in rows]
    return _listed(rows, paths, [base + path for path in paths], _class_names(copy, base + name, mat))


def _parts(copy: Copy, base: str, name: str) -> Listed:
    devkit = base + name.rpartition("/")[0] + "/"
    # Beside the devkit or inside it; the devkit's own cars_test_annos.mat has no classes.
    labelled = [f"{base}{LABELLED_TEST}", f"{devkit}{LABELLED_TEST}"]
    test = next((path for path in labelled if copy.has(path)), labelled[0])
    train_rows = _rows(copy, base + name, _load(copy, base + name), "fname")
    test_rows = _rows(copy, test, _load(copy, test), "fname")
    ids, files = [], []
    for part, rows in (("cars_train", train_rows), ("cars_test", test_rows)):
        inner = [f"{part}/{row['fname']}" for row in rows]
        # Some mirrors pack the folder into a folder of the same name.
        top = (
            base
            if copy.has(base + inner[0]) or not copy.has(f"{base}{part}/{inner[0]}")
            else f"{base}{part}/"
        )
        ids += inner
        files += [top + path for path in inner]
    meta = devkit + "cars_meta.mat"
    return _listed([*train_rows, *test_rows], ids, files, _class_names(copy, meta, _load(copy, meta)))


def _listed(rows: list[Any], ids: list[str], files: list[str], classes: list[str]) -> Listed:
    numbers = np.array([int(row["class"]) for row in rows], dtype=np.int64)  # from 1
    if numbers.min() < 1 or numbers.max() > len(classes):
        raise InputError(
            f"Cars-196: classes {numbers.min()}-{numbers.max()} in the annotations, but {len(classes)} class names. "
            "Take the .mat files from one original archive again"
        )
    return Listed(
        ids=ids,
        files=files,
        labels=numbers - 1,
        classes=classes,
        splits=np.where(numbers <= 98, "train", "test"),
        boxes=np.array([[row[corner] for corner in CORNERS] for row in rows], dtype=np.float32),
    )


def _load(copy: Copy, name: str) -> dict[str, Any]:
    from scipy.io import loadmat

    content = copy.read(name)
    try:
        return loadmat(BytesIO(content), squeeze_me=True)
    except Exception as error:  # whatever the broken bytes lead the reader to
        raise InputError(
            f"{copy.files.path(name)} cannot be read as a MATLAB file: {error}. Take it from the original archive again"
        ) from error


def _rows(copy: Copy, name: str, mat: dict[str, Any], path_field: str) -> list[Any]:
    rows = np.atleast_1d(mat.get("annotations", []))
    there = rows.dtype.names or ()
    for field in (path_field, "class", *CORNERS):
        if field not in there:
            hint = (
                f" The list with the classes of the test part is {LABELLED_TEST}" if field == "class" else ""
            )
            raise InputError(f"{copy.files.path(name)} has no annotations with a field {field!r}.{hint}")
    return list(rows)


def _class_names(copy: Copy, name: str, mat: dict[str, Any]) -> list[str]:
    if "class_names" not in mat:
        raise InputError(
            f"{copy.files.path(name)} has no class_names. Take it from the original archive again"
        )
    return [str(one) for one in np.atleast_1d(mat["class_names"])]

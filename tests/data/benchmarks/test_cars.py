"""Cars-196 in both of its layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from deepmetric.data import Cars196, ClassSplit, NotTheBenchmark
from deepmetric.errors import InputError

from .conftest import dealt, touch, write_lines

NUMBERS = [*(1 + c for c in dealt(8054, 98)), *(99 + c for c in dealt(8131, 98))]
CLASSES = np.array([f"Car {c} Sedan 2012" for c in range(1, 197)], dtype=object)
# Every other image of a class, near enough: the parts of the archives share all classes.
TRAIN = np.arange(0, 16_185, 2)[:8_092]
IN_TRAIN = np.isin(np.arange(16_185), TRAIN)


def annotations(path_field: str, paths: list[str], numbers: list[int] | None) -> np.ndarray:
    """The struct array of a devkit, fields in the archives' order."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if numbers else [])]
    rows = np.zeros(len(paths), dtype=[(name, object) for name in (*fields, path_field)])
    for place, name in enumerate(fields[:4]):
        rows[name] = np.arange(len(paths)) % 50 + 60 * place
    if numbers:
        rows["class"] = numbers
    rows[path_field] = paths
    return rows


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cars_annos.mat and car_ims/."""
    root = tmp_path_factory.mktemp("cars")
    paths = [f"car_ims/{i:06}.jpg" for i in range(1, 16_186)]
    mat = {"annotations": annotations("relative_im_path", paths, NUMBERS), "class_names": CLASSES}
    savemat(root / "cars_annos.mat", mat)
    touch(root, paths)
    return root


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cars_train/, cars_test/ and devkit/, in a folder below."""
    root = tmp_path_factory.mktemp("cars") / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    for part, chosen, name in (
        ("cars_train", IN_TRAIN, "devkit/cars_train_annos.mat"),
        ("cars_test", ~IN_TRAIN, "cars_test_annos_withlabels.mat"),
    ):
        numbers = np.array(NUMBERS)[chosen].tolist()
        names = [f"{i:05}.jpg" for i in range(1, len(numbers) + 1)]
        savemat(root / name, {"annotations": annotations("fname", names, numbers)})
        touch(root, (f"{part}/{name}" for name in names))
    savemat(root / "devkit/cars_meta.mat", {"class_names": CLASSES})
    few = annotations("fname", ["00001.jpg", "00002.jpg"], None)
    savemat(root / "devkit/cars_test_annos.mat", {"annotations": few})
    return root.parent


DESCRIPTION = """\
Cars-196
train: 8,054 items, 98 classes
test: 8,131 items, 98 classes
no class is in two splits"""


def test_one_folder(joined: Path):
    data = Cars196(joined)
    assert data.describe() == DESCRIPTION
    assert data.ks == (1, 2, 4, 8, 16, 32)
    assert np.array_equal(data.labels, np.array(NUMBERS) - 1)
    assert data.classes[:2] == ["Car 1 Sedan 2012", "Car 2 Sedan 2012"]
    assert data.ids[0] == "car_ims/000001.jpg"
    assert data.boxes is not None
    assert data.boxes[1].tolist() == [1, 61, 121, 181]
    assert data.split("test").ids[0] == "car_ims/008055.jpg"


def test_two_parts_are_joined_and_split_by_class(parts: Path):
    data = Cars196(parts, split=ClassSplit(val=8, order="name"))
    train = data.labels[(data.splits != "test")]
    assert (len(train), train.max()) == (8054, 97)
    assert len(data.split("test")) == 8131
    assert len(np.unique(data.split("val").labels)) == 8
    # Both splits take from both parts: the parts are no split of classes.
    for split in ("train", "test"):
        assert {name.partition("/")[0] for name in data.split(split).ids} == {"cars_train", "cars_test"}
    assert Cars196(parts).describe() == DESCRIPTION


def test_one_part_alone_is_refused(parts: Path, tmp_path: Path):
    for name in ("devkit", "cars_train", "cars_test_annos_withlabels.mat"):
        (tmp_path / name).symlink_to(parts / "stanford_cars" / name)
    with pytest.raises(NotTheBenchmark, match=r"listed files are not there, the first cars_test/00001.jpg"):
        Cars196(tmp_path)
    partial = Cars196(tmp_path, partial=True)
    assert partial.name == "Cars-196 (partial: 8,092 of 16,185 images)"


def test_the_devkit_without_labels_of_the_test_part(parts: Path, tmp_path: Path):
    for name in ("devkit", "cars_train", "cars_test"):
        (tmp_path / name).symlink_to(parts / "stanford_cars" / name)
    with pytest.raises(NotTheBenchmark, match=r"lacks cars_test_annos_withlabels.mat"):
        Cars196(tmp_path)
    unlabelled = tmp_path / "devkit/cars_test_annos.mat"
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(unlabelled.read_bytes())
    with pytest.raises(InputError, match=r"no annotations with a field 'class'. The list with the classes"):
        Cars196(tmp_path)


def test_parts_in_folders_of_the_same_name(parts: Path, tmp_path: Path):
    for name in ("devkit", "cars_test_annos_withlabels.mat"):
        (tmp_path / name).symlink_to(parts / "stanford_cars" / name)
    for part in ("cars_train", "cars_test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / part).symlink_to(parts / "stanford_cars" / part)
    # The mirror that does so also packs the other layout's list, whose images it has not.
    paths = ["car_ims/000001.jpg", "car_ims/000002.jpg"]
    mat = {"annotations": annotations("relative_im_path", paths, [1, 1]), "class_names": CLASSES}
    savemat(tmp_path / "cars_annos.mat", mat)
    assert Cars196(tmp_path).name == "Cars-196"


def test_one_image_fewer(joined: Path, stub_listing):
    stub_listing(joined, {"car_ims/016185.jpg"})
    with pytest.raises(NotTheBenchmark, match="test: 8,130 of 8,131 images, 98 of 98 classes"):
        Cars196(joined)


def test_no_matlab_file(tmp_path: Path):
    write_lines(tmp_path / "cars_annos.mat", ["<html>404</html>"])
    with pytest.raises(InputError, match="cannot be read as a MATLAB file"):
        Cars196(tmp_path)


def test_no_download(tmp_path: Path):
    with pytest.raises(InputError, match=r"cannot be downloaded by a program.*mirror"):
        Cars196(tmp_path, download=True)

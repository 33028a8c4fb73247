"""Folders and zips in every layout that people have."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepmetric.data import ClassSplit, FolderDataset, UnreadableImage, make_loader
from deepmetric.data.files import ZipFiles
from deepmetric.errors import InputError

CLASSES = [f"{name}/{i}.png" for name in ("cat", "dog", "emu", "fox", "gnu") for i in range(3)]


def classes_of(dataset: FolderDataset) -> list[str]:
    return [dataset.classes[label] for label in dataset.labels]


@pytest.fixture(params=["folder", "zip"])
def opened(request, write_images, zipped, tmp_path: Path):
    """Open a tree of the named images, as a folder and as a zip."""

    def open_tree(names, root="root", **kwargs) -> FolderDataset:
        folder = write_images(tmp_path / root, names)
        return FolderDataset(folder if request.param == "folder" else zipped(folder), **kwargs)

    return open_tree


def test_classes(opened):
    data = opened(CLASSES)
    assert data.ids == CLASSES
    assert data.classes == ["cat", "dog", "emu", "fox", "gnu"]
    assert classes_of(data) == [name.split("/")[0] for name in CLASSES]
    assert [int(data.read(i)[0, 0, 0]) for i in range(len(data))] == list(range(15))
    assert set(data.splits) == {"train", "val", "test"}
    assert data.shared_classes() == {}


def test_items_are_in_natural_order(opened):
    data = opened(["c10/1.png", "c9/10.png", "c9/9.png", "c1/1.png"])
    assert data.ids == ["c1/1.png", "c9/9.png", "c9/10.png", "c10/1.png"]
    assert data.classes == ["c1", "c9", "c10"]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_splits(opened, val):
    data = opened(["train/a/1.png", "train/b/1.png", f"{val}/c/1.png", "test/d/1.png"])
    assert dict(zip(data.ids, data.splits.tolist())) == {
        "train/a/1.png": "train",
        "train/b/1.png": "train",
        f"{val}/c/1.png": "val",
        "test/d/1.png": "test",
    }
    assert data.classes == ["a", "b", "c", "d"]


def test_a_class_in_two_splits_is_one_class(opened):
    data = opened(["train/a/1.png", "train/b/1.png", "test/b/2.png"])
    assert data.classes == ["a", "b"]
    assert data.shared_classes() == {("train", "test"): ["b"]}


def test_val_is_dealt_out_of_train(opened):
    names = [f"train/c{i}/1.png" for i in range(10)] + [f"test/d{i}/1.png" for i in range(4)]
    data = opened(names, split=ClassSplit(val=2, order="name"))
    assert [name for name, split in zip(data.ids, data.splits) if split == "val"] == names[8:10]
    assert [name for name, split in zip(data.ids, data.splits) if split == "test"] == names[10:]


def test_a_train_folder_alone(opened):
    data = opened(["train/a/1.png", "train/b/1.png"])
    assert data.classes == ["a", "b"]
    assert set(data.splits) == {"train"}


def test_nested_classes_and_groups(opened):
    data = opened(
        ["greek/alpha/1.png", "greek/beta/1.png", "latin/a/1.png", "thai/ko/1.png"],
        split=ClassSplit(test=1, val=1, by="group", order="name"),
    )
    assert data.classes == ["greek/alpha", "greek/beta", "latin/a", "thai/ko"]
    assert data.splits.tolist() == ["train", "train", "val", "test"]


def test_images_at_two_levels(opened):
    data = opened(["a/1.png", "a/b/2.png", "c/3.png", "d/4.png"])
    assert dict(zip(data.ids, classes_of(data))) == {
        "a/1.png": "a",
        "a/b/2.png": "a/b",
        "c/3.png": "c",
        "d/4.png": "d",
    }


def test_wrapping_folders_are_entered(opened):
    data = opened([f"omniglot/images/{name}" for name in CLASSES])
    assert data.classes == ["cat", "dog", "emu", "fox", "gnu"]
    assert data.ids[0] == "omniglot/images/cat/0.png"
    assert opened([f"top/train/{n}" for n in CLASSES] + ["top/test/x/1.png"], "r2").classes[-1] == "x"


def test_one_class_alone_is_not_a_wrapping_folder(opened):
    data = opened(["pictures/cats/1.png", "pictures/cats/2.png"], split=ClassSplit(test=0, val=0))
    assert data.classes == ["cats"]
    assert opened(["cats/1.png"], "r2", split=ClassSplit(test=0, val=0)).classes == ["cats"]


def test_a_class_may_be_called_train(opened):
    data = opened(["apple/1.png", "train/1.png", "tree/1.png"])
    assert data.classes == ["apple", "train", "tree"]


def test_splits_beside_something_else(opened):
    with pytest.raises(InputError, match="'extra'"):
        opened(["train/a/1.png", "test/b/1.png", "extra/c/1.png"])


def test_what_is_no_image_is_passed_over(opened, tmp_path: Path):
    for name in ["cat/notes.txt", "labels.csv", ".DS_Store", "cat/.hidden.png", "__MACOSX/cat/._0.png"]:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    (tmp_path / "root/.cache/deep").mkdir(parents=True)
    assert opened(CLASSES).ids == CLASSES


def test_extensions_are_read_in_any_case(opened):
    names = ["a/1.PNG", "b/2.Jpg", "c/3.jpeg", "d/4.JPEG"]
    assert sorted(opened(names).ids) == names


def test_names_beyond_ascii(opened):
    data = opened(["Ж/файл один.png", "é/ü.png", "猫/1.png"])
    assert set(data.classes) == {"Ж", "é", "猫"}
    assert data.read(0).shape == (3, 5, 6)


def test_images_outside_any_class(opened):
    with pytest.raises(InputError, match=r"stray\.png lies in no class folder"):
        opened(["stray.png", *CLASSES])
    with pytest.raises(InputError, match=r"lies in no class folder"):
        opened(["train/1.png", "test/a/1.png"], "r2")


def test_an_empty_class(opened, tmp_path: Path):
    (tmp_path / "root/yak/deeper").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no image in the folder .*yak and 1 more"):
        opened(CLASSES)


def test_an_empty_split(opened, tmp_path: Path):
    (tmp_path / "root/test").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no image in the folder .*test"):
        opened([f"train/{name}" for name in CLASSES])


def test_an_empty_folder_beside_the_wrapped_images_does_not_matter(opened, tmp_path: Path):
    (tmp_path / "root/CUB/attributes").mkdir(parents=True)
    assert len(opened([f"CUB/images/{name}" for name in CLASSES])) == 15


def test_no_image_at_all(opened, tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/readme.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"no image in .*\.png"):
        opened([])


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(InputError, match="no folder or zip file at"):
        FolderDataset(tmp_path / "none")


def test_neither_folder_nor_zip(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"neither a folder nor a \.zip"):
        FolderDataset(tmp_path / "x.tar")


def test_a_table_is_sent_to_its_own_recipe(tmp_path: Path):
    for name in ("t.csv", "t.parquet"):
        (tmp_path / name).write_text("path,label,split")
        with pytest.raises(InputError, match=rf"is a table.*recipe data/table and --data\.path .*{name}"):
            FolderDataset(tmp_path / name)


def test_a_broken_zip(tmp_path: Path):
    (tmp_path / "x.zip").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="cannot open the zip archive"):
        FolderDataset(tmp_path / "x.zip")


def test_links_are_followed_but_not_in_circles(write_images, tmp_path: Path):
    root = write_images(tmp_path / "root", ["a/1.png", "b/1.png", "c/1.png"])
    real = write_images(tmp_path / "elsewhere", ["1.png"])
    (root / "d").symlink_to(real)
    (root / "c/again").symlink_to(root)
    assert FolderDataset(root).ids == ["a/1.png", "b/1.png", "c/1.png", "d/1.png"]


# ---- unreadable files


@pytest.fixture
def broken(opened, tmp_path: Path):
    def open_broken(**kwargs):
        for name in ("dog/bad.png", "gnu/worse.jpg"):
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
        return opened(CLASSES, **kwargs)

    return open_broken


def test_a_broken_file_stops_at_its_first_read(broken):
    data = broken()
    assert len(data) == 17
    with pytest.raises(UnreadableImage, match=r"root(\.zip)?/dog/bad\.png.*skip_unreadable: true") as caught:
        data.read(data.ids.index("dog/bad.png"))
    assert "bad.png" in caught.value.path


def test_broken_files_are_left_out_and_listed(broken):
    data = broken(skip_unreadable=True)
    assert data.ids == CLASSES
    assert [int(data.read(i)[0, 0, 0]) for i in range(len(data))] == list(range(15))
    assert len(data.skipped) == 2
    assert "bad.png: " in data.skipped[0]
    assert "worse.jpg: " in data.skipped[1]
    assert "2 unreadable files left out" in data.describe()
    assert data.split("train").skipped == data.skipped


def test_skipping_does_not_move_classes_between_splits(broken):
    kept = broken(skip_unreadable=True)
    whole = broken()
    splits = dict(zip(whole.ids, whole.splits.tolist()))
    assert [splits[name] for name in kept.ids] == kept.splits.tolist()


def test_nothing_readable(opened, tmp_path: Path):
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/1.png").write_bytes(b"no")
    with pytest.raises(InputError, match="none of the 1 images"):
        opened([], skip_unreadable=True, split=ClassSplit(test=0, val=0))


def test_the_check_takes_a_part_of_the_files_at_a_time(opened, monkeypatch):
    waiting, most, read = 0, 0, FolderDataset.read

    def submit(self, *arguments):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return really(self, *arguments)

    def counted(self, i: int):
        nonlocal waiting
        waiting -= 1
        return read(self, i)

    monkeypatch.setattr("deepmetric.data.unreadable.PART", 4, raising=False)
    really = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    monkeypatch.setattr(FolderDataset, "read", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert opened(CLASSES, skip_unreadable=True).ids == CLASSES
    assert most <= 4


def test_a_damaged_member_is_unreadable(noise_tree: Path, zipped):
    archive = zipped(noise_tree)
    content = bytearray(archive.read_bytes())
    where = content.find((noise_tree / "b/2.png").read_bytes()[40:80])
    content[where : where + 20] = bytes(20)
    archive.write_bytes(content)
    data = FolderDataset(archive)
    with pytest.raises(UnreadableImage, match=r"noise\.zip/b/2\.png: Bad CRC"):
        data.read(data.ids.index("b/2.png"))
    assert len(FolderDataset(archive, skip_unreadable=True)) == 11


def test_a_locked_member_is_unreadable(noise_tree: Path, zipped):
    archive = zipped(noise_tree)
    content = bytearray(archive.read_bytes())
    for signature, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the "encrypted" bit of every member
        where = -1
        while (where := content.find(signature, where + 1)) >= 0:
            content[where + flag] |= 1
    archive.write_bytes(content)
    with pytest.raises(UnreadableImage, match="encrypted"):
        FolderDataset(archive).read(0)


# ---- several processes


def digest(data: FolderDataset) -> str:
    return hashlib.sha256(b"".join(data.read(i).numpy().tobytes() for i in range(len(data)))).hexdigest()


def test_forked_processes_do_not_read_each_others_bytes(noise_tree: Path, zipped):
    data = FolderDataset(zipped(noise_tree))
    expected = digest(data)  # the handle is open and has been used
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(5), context.Queue()

    def child():
        start.wait(30)
        try:
            answers.put([digest(data) for _ in range(10)])
        except BaseException as error:
            answers.put(repr(error))

    children = [context.Process(target=child) for _ in range(4)]
    for process in children:
        process.start()
    start.wait(30)
    own = [digest(data) for _ in range(10)]
    found = [answers.get(timeout=60) for _ in children]
    for process in children:
        process.join(30)
    assert own == [expected] * 10
    assert found == [[expected] * 10] * 4


def test_each_process_opens_the_archive_for_itself(noise_tree: Path, zipped, monkeypatch):
    files = ZipFiles(zipped(noise_tree))
    here = files._archive()
    assert files._archive() is here
    monkeypatch.setattr(os, "getpid", lambda: -7)
    assert files._archive() is not here


def test_a_spawned_process_gets_a_dataset_that_reads(noise_tree: Path, zipped):
    data = FolderDataset(zipped(noise_tree))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        labels = [item.label for item in pool.map(data.__getitem__, [0, 5, 11])]
    assert labels == [0, 1, 2]


def test_loading_a_zip_with_workers(noise_tree: Path, zipped):
    data = FolderDataset(zipped(noise_tree))
    alone = [batch.images for batch in make_loader(data, batch_size=2)]
    together = [batch.images for batch in make_loader(data, batch_size=2, workers=2)]
    assert len(alone) == 6
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_folder_and_zip_agree(noise_tree: Path, zipped):
    folder, archive = FolderDataset(noise_tree), FolderDataset(zipped(noise_tree))
    assert folder.ids == archive.ids
    assert (folder.splits == archive.splits).all()
    assert digest(folder) == digest(archive)


def test_a_zip_without_folder_entries_and_with_duplicates(tmp_path: Path):
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(tmp_path / "x.png", "a/1.png")
        file.write(tmp_path / "x.png", "b/1.png")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.write(tmp_path / "x.png", "a/1.png")
    data = FolderDataset(archive, split=ClassSplit(test=0, val=0))
    assert data.ids == ["a/1.png", "b/1.png"]
    assert np.array_equal(data.labels, [0, 1])


def test_a_zip_whose_names_begin_with_a_dot(tmp_path: Path):
    """As `tar -a -cf x.zip .` makes it."""
    Image.new("RGB", (2, 3)).save(tmp_path / "x.png")
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("./train/a/1.png", "./test/b/1.png", "./.hidden/c/1.png"):
            file.writestr(name, (tmp_path / "x.png").read_bytes())
    data = FolderDataset(archive)
    assert data.classes == ["a", "b"]
    assert data.splits.tolist() == ["test", "train"]
    assert data.read(0).shape == (3, 3, 2)

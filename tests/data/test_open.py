"""One word for every source."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepmetric.data import (
    ClassSplit,
    FolderDataset,
    GlyphsDataset,
    NotTheBenchmark,
    TableDataset,
    open_dataset,
)
from deepmetric.errors import InputError

NAMES = [f"{name}/{i}.png" for name in "abcde" for i in range(2)]


@pytest.fixture
def folder(write_images, tmp_path: Path) -> Path:
    return write_images(tmp_path / "birds", NAMES)


def test_a_folder_and_a_zip(folder: Path, zipped):
    assert isinstance(open_dataset(folder), FolderDataset)
    assert isinstance(open_dataset(str(zipped(folder))), FolderDataset)


def test_tables(folder: Path):
    (folder / "t.csv").write_text("path,label,split\na/0.png,a,train\n")
    assert isinstance(open_dataset(folder / "t.csv"), TableDataset)
    assert open_dataset(folder / "t.csv", root=folder).ids == ["a/0.png"]


def test_glyphs(glyph_cache, tmp_path: Path, monkeypatch):
    (tmp_path / "glyphs").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of that name is ./glyphs
    data = open_dataset("glyphs", instances=1, size=8)
    assert isinstance(data, GlyphsDataset)
    assert data[0].image.shape == (3, 8, 8)


def test_arguments_go_to_the_source(folder: Path):
    data = open_dataset(folder, split=ClassSplit(test=1, val=0, order="name"))
    assert data.split("test").ids == ["e/0.png", "e/1.png"]


def test_what_is_open_stays_open(folder: Path):
    data = open_dataset(folder)
    assert open_dataset(data) is data
    with pytest.raises(InputError, match="open already"):
        open_dataset(data, split=ClassSplit())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("glyps", "Did you mean 'glyphs'"),
        ("{}/brids", "Did you mean 'birds'"),
        ("{}/birds.zap", "Did you mean 'birds'"),
        ("{}/nothing/like/it", "expected 'glyphs' or the path of a folder"),
    ],
)
def test_nothing_there(folder: Path, source, message):
    with pytest.raises(InputError, match=message):
        open_dataset(source.format(folder.parent))


def test_of_no_known_kind(folder: Path):
    with pytest.raises(InputError, match="of no known kind"):
        open_dataset(folder / "a/0.png")


def test_misspelt_argument(folder: Path):
    with pytest.raises(InputError, match=r"no 'skip_unreadble'.*Did you mean 'skip_unreadable'"):
        open_dataset(folder, skip_unreadble=True)
    with pytest.raises(InputError, match="no 'root'"):
        open_dataset(folder, root=folder)


def test_a_benchmark_is_a_name_with_its_place(folder: Path, monkeypatch):
    for arguments in ({"source": f"cub:{folder}"}, {"source": "cub", "root": folder}):
        with pytest.raises(NotTheBenchmark, match=r"holds images\.txt"):
            open_dataset(**arguments)
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InputError, match="say where cub is: cub:FOLDER"):
        open_dataset("cub")
    folder.rename("cub")
    assert isinstance(open_dataset("cub"), FolderDataset)  # a folder of that name
    with pytest.raises(InputError, match=r"CUB200 takes no 'partail'.*Did you mean 'partial'"):
        open_dataset("cub:cub", partail=True)

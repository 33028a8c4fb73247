"""Tables with open-metric-learning's columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from deepmetric.data import ClassSplit, TableDataset, UnreadableImage
from deepmetric.errors import InputError

PIXELS = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(np.roll(PIXELS, i, 0)).save(tmp_path / f"images/{i}.png")
    return tmp_path


def table(root: Path, text: str, name="data.csv") -> Path:
    path = root / name
    path.write_text("\n".join(line.strip() for line in text.strip().splitlines()) + "\n")
    return path


PLAIN = """
path,label,split
images/0.png,10,train
images/1.png,10,train
images/2.png,9,train
images/3.png,7,validation
images/4.png,8,test
"""


def test_plain(root: Path):
    data = TableDataset(table(root, PLAIN))
    assert data.ids == [f"images/{i}.png" for i in range(5)]
    assert data.classes == ["7", "8", "9", "10"]
    assert data.labels.tolist() == [3, 3, 2, 0, 1]
    assert data.splits.tolist() == ["train", "train", "train", "val", "test"]
    assert data.is_query.all()
    assert data.is_gallery.all()
    assert data.categories is None
    assert (data.read(0).permute(1, 2, 0).numpy() == PIXELS).all()


def test_parquet_equals_csv(root: Path):
    columns = {
        "path": [f"images/{i}.png" for i in range(5)],
        "label": [10, 10, 9, 7, 8],
        "split": ["train", "train", "train", "validation", "test"],
        "x_1": [None, 1.0, float("nan"), None, None],
        "y_1": [None, 2.0, float("nan"), None, None],
        "x_2": [None, 9.0, float("nan"), None, None],
        "y_2": [None, 8.0, float("nan"), None, None],
        "is_query": [None, None, None, True, True],
        "is_gallery": [None, None, None, True, True],
    }
    parquet.write_table(pa.table(columns), root / "data.parquet")
    data = TableDataset(root / "data.parquet")
    plain = TableDataset(table(root, PLAIN))
    assert data.classes == plain.classes
    assert (data.labels == plain.labels).all()
    assert (data.splits == plain.splits).all()
    assert data.ids == ["images/0.png", "images/1.png#1,2,9,8", *(f"images/{i}.png" for i in range(2, 5))]
    assert data.read(1).shape == (3, 6, 8)


def test_dictionary_and_large_columns_of_parquet(root: Path):
    columns = {
        "path": pa.array(["images/0.png", "images/1.png"], pa.large_string()),
        "label": pa.array(["a", "b"]).dictionary_encode(),
        "split": pa.array(["train", "test"]).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), root / "data.parquet")
    assert TableDataset(root / "data.parquet").classes == ["a", "b"]


def test_labels_are_names(root: Path):
    data = TableDataset(
        table(root, "path,label,split\nimages/0.png,NA,train\nimages/1.png,007,train\nimages/2.png,7,train")
    )
    assert [data.classes[label] for label in data.labels] == ["NA", "007", "7"]


def test_quoted_paths_other_columns_and_a_byte_order_mark(root: Path):
    (root / "images/a, b.png").write_bytes((root / "images/0.png").read_bytes())
    text = '\ufeffpath,label,split,width,"note"\n"images/a, b.png",x,train,7,"two\nlines"\n'
    (root / "data.csv").write_text(text, encoding="utf-8")
    assert TableDataset(root / "data.csv").ids == ["images/a, b.png"]


def test_paths_from_another_root_and_absolute_ones(root: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("tables")
    path = table(elsewhere, f"path,label,split\n0.png,a,train\n{root}/images/1.png,b,train")
    assert len(TableDataset(path, root / "images")) == 2
    with pytest.raises(InputError, match=r"row 1: no file at .*give root"):
        TableDataset(path)


def test_val_is_dealt_out_of_train(root: Path):
    rows = "".join(f"images/{i}.png,{i},{'train' if i < 4 else 'test'}\n" for i in range(6))
    data = TableDataset(table(root, "path,label,split\n" + rows), split=ClassSplit(val=1, order="name"))
    assert data.splits.tolist() == ["train", "train", "train", "val", "test", "test"]


# ---- query and gallery


def test_query_and_gallery(root: Path):
    data = TableDataset(
        table(
            root,
            """path,label,split,category,is_query,is_gallery
            images/0.png,0,train,shoes,,
            images/1.png,1,validation,bags,True,False
            images/2.png,1,validation,bags,False,True
            images/3.png,2,test,,1,0
            images/4.png,2,test,bags,0.0,1.0""",
        )
    )
    assert data.is_query.tolist() == [True, True, False, True, False]
    assert data.is_gallery.tolist() == [True, False, True, False, True]
    assert data.categories is not None
    assert data.categories.tolist() == ["shoes", "bags", "bags", "", "bags"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("images/0.png,0,validation,,True", "row 1: is_query is empty"),
        ("images/0.png,0,test,yes,True", "row 1: is_query is yes; expected true or false"),
        (
            "images/0.png,0,train,,\nimages/1.png,1,test,False,True",
            "is_query is false in every row of the split test",
        ),
    ],
)
def test_wrong_query_and_gallery(root: Path, rows, message):
    with pytest.raises(InputError, match=message):
        TableDataset(table(root, "path,label,split,is_query,is_gallery\n" + rows))


def test_is_query_needs_is_gallery(root: Path):
    with pytest.raises(InputError, match="no column 'is_gallery'"):
        TableDataset(table(root, "path,label,split,is_query\nimages/0.png,0,test,True"))


# ---- boxes

BOXED = "path,label,split,x_1,y_1,x_2,y_2\nimages/0.png,0,train,{}"


def test_a_box_is_cut_out(root: Path):
    data = TableDataset(
        table(
            root, BOXED.format("3,2,11,7\nimages/0.png,1,train,0.0,0.0,20.0,12.0\nimages/1.png,0,train,,,,")
        )
    )
    assert data.ids == ["images/0.png#3,2,11,7", "images/0.png#0,0,20,12", "images/1.png"]
    assert (data.read(0).permute(1, 2, 0).numpy() == PIXELS[2:7, 3:11]).all()
    assert (data.read(1).permute(1, 2, 0).numpy() == PIXELS).all()
    assert (data.read(2).permute(1, 2, 0).numpy() == np.roll(PIXELS, 1, 0)).all()
    part = data.subset([2, 0])
    assert (part.read(1).permute(1, 2, 0).numpy() == PIXELS[2:7, 3:11]).all()


def test_boxes_between_pixels_are_rounded(root: Path):
    data = TableDataset(table(root, BOXED.format("2.6,1.5,10.5,7.4")))
    assert (data.read(0).permute(1, 2, 0).numpy() == PIXELS[2:7, 3:11]).all()
    assert data.ids == ["images/0.png#2.6,1.5,10.5,7.4"]
    tiny = TableDataset(table(root, BOXED.format("3.1,2.1,3.3,2.2")))
    assert (tiny.read(0).permute(1, 2, 0).numpy() == PIXELS[2:3, 3:4]).all()


def test_one_pixel_over_the_edge_is_cut_off(root: Path):
    data = TableDataset(table(root, BOXED.format("10,5,21,13")))
    assert (data.read(0).permute(1, 2, 0).numpy() == PIXELS[5:, 10:]).all()


@pytest.mark.parametrize("box", ["0,0,22,5", "0,0,5,14", "20,0,21,5", "30,30,40,40"])
def test_a_box_outside_its_image(root: Path, box):
    data = TableDataset(table(root, BOXED.format(box)))
    with pytest.raises(
        InputError, match=r"row 1: the box x_1=.* reaches out of images/0\.png, which is 20 wide and 12"
    ):
        data.read(0)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("3,2,3,7", "impossible"),
        ("3,9,11,7", "impossible"),
        ("-1,2,11,7", "impossible"),
        ("3,,11,7", "all four corners or none"),
        ("3,2,eleven,7", "is not four numbers"),
        ("3,2,inf,7", "all four corners or none"),
    ],
)
def test_impossible_boxes(root: Path, box, message):
    with pytest.raises(InputError, match=f"row 1: the box .*{message}"):
        TableDataset(table(root, BOXED.format(box)))


def test_corners_come_together(root: Path):
    with pytest.raises(InputError, match="no column 'y_2'"):
        TableDataset(table(root, "path,label,split,x_1,y_1,x_2\nimages/0.png,0,train,1,2,3"))


# ---- what else can be wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,labels,split\nimages/0.png,0,train", r"no column 'label', only .*Did you mean 'labels'"),
        ("path,label\nimages/0.png,0", "no column 'split'"),
        (
            "path,label,split\nimages/0.png,0,train\nimages/1.png,0,trian",
            "row 2: split is 'trian'.*mean 'train'",
        ),
        ("path,label,split\nimages/0.png,,train", "row 1: label is empty"),
        ("path,label,split\n,0,train", "row 1: path is empty"),
        (
            "path,label,split\nimages/0.png,0,train\nimages/9.png,0,train",
            r"row 2: no file at .*images/9\.png",
        ),
        (
            "path,label,split\nimages/0.png,0,train\nimages/0.png,0,test",
            r"row 2: images/0\.png is in row 1 already",
        ),
        ("path,label,split,label\nimages/0.png,0,train,1", "has 2 columns named 'label'"),
        ("path,label,split", "has no rows"),
        ("", "cannot read the table"),
        ("path,label,split\nimages/0.png,0", "cannot read the table"),
    ],
)
def test_wrong_tables(root: Path, text, message):
    with pytest.raises(InputError, match=message):
        TableDataset(table(root, text))


def test_no_table(tmp_path: Path):
    with pytest.raises(InputError, match="no table at"):
        TableDataset(tmp_path / "none.csv")


def test_a_column_twice_in_parquet(root: Path):
    columns = [pa.array([cell]) for cell in ("images/0.png", "a", "train", "b")]
    parquet.write_table(pa.table(columns, names=["path", "label", "split", "label"]), root / "data.parquet")
    with pytest.raises(InputError, match=r"data\.parquet has 2 columns named 'label'"):
        TableDataset(root / "data.parquet")


def test_a_table_of_another_kind(root: Path):
    with pytest.raises(InputError, match=r"data\.tsv is no table: .* ends in \.csv, \.parquet, \.pq"):
        TableDataset(table(root, PLAIN, "data.tsv"))


def test_parquet_that_is_none(tmp_path: Path):
    (tmp_path / "x.parquet").write_text("path,label,split")
    with pytest.raises(InputError, match="cannot read the table"):
        TableDataset(tmp_path / "x.parquet")


def test_missing_and_broken_files_are_skipped_when_asked(root: Path):
    (root / "images/1.png").write_bytes(b"broken")
    (root / "images/2.png").unlink()
    path = table(root, PLAIN)
    data = TableDataset(path, skip_unreadable=True)
    assert data.ids == ["images/0.png", "images/3.png", "images/4.png"]
    assert [name.split("images/")[1][:5] for name in data.skipped] == ["1.png", "2.png"]
    (root / "images/2.png").write_bytes(b"broken")
    with pytest.raises(UnreadableImage, match=r"images/1\.png"):
        TableDataset(path).read(1)

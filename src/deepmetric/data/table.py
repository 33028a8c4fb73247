"""Items listed in a CSV or parquet table, with the columns that open-metric-learning reads."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from deepmetric.data.dataset import Dataset
from deepmetric.data.images import LEAVE_OUT, decode
from deepmetric.data.open import TABLES
from deepmetric.data.splits import SPELLINGS, ClassSplit, item_splits, natural_key
from deepmetric.data.unreadable import leave_out_unreadable
from deepmetric.errors import InputError, did_you_mean

REQUIRED = ("path", "label", "split")
SIDES = ("is_query", "is_gallery")
CORNERS = ("x_1", "y_1", "x_2", "y_2")
COLUMNS = (*REQUIRED, "category", *SIDES, *CORNERS)
NOTHING = frozenset(("", "nan", "none", "null", "<na>"))


class TableDataset(Dataset):
    """A CSV or parquet table: ``path,label,split[,category,is_query,is_gallery,x_1,y_1,x_2,y_2]``.

    ``label`` is a number or a name; ``split`` is train, validation (or val) or test. ``is_query`` and ``is_gallery``
    come together, hold true or false for every validation and test row and may be empty for train; without them query
    and gallery are one set. The corners (left, top, right, bottom in pixels of the upright image) come together
    and may be empty; an image is cropped to them when it is read. Other columns are passed over. Rows are counted from
    1, the header left out.

    An id is the path, with ``#x_1,y_1,x_2,y_2`` appended where there is a box.

    Args:
        path: the table.
        root: the folder that relative paths start from; None is the table's own.
        split: deals the splits that the table lacks, out of its train classes; see :class:`ClassSplit`.
        skip_unreadable: decode every file now and leave out those that are missing or broken, listed in ``skipped``.

    Raises:
        InputError: a missing column, file or value, an unknown split, an impossible box, two rows for one item; the
            message names the row. A box outside its image raises when the image is read.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        *,
        split: ClassSplit | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        table = Path(path).expanduser()
        columns = _read(table)
        self._root = table.parent if root is None else Path(root).expanduser()
        self._table = table
        self._paths = _filled(columns, "path", table)
        names = _filled(columns, "label", table)
        given = _splits(columns, table)
        self._boxes = _boxes(columns, table)
        query, gallery = _sides(columns, given, table)
        classes = sorted(set(names), key=natural_key)
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[name] for name in names], dtype=np.int64)
        super().__init__(
            _ids(self._paths, self._boxes, table),
            labels,
            classes,
            item_splits(labels, classes, given, split),
            is_query=query,
            is_gallery=gallery,
            categories=np.array([cell or "" for cell in columns["category"]])
            if "category" in columns
            else None,
        )
        if skip_unreadable:
            leave_out_unreadable(self)
        else:
            self._refuse_missing_files()

    def load(self, row: int) -> Tensor:
        image = decode(self._root / self._paths[row])
        box = None if self._boxes is None else self._boxes[row]
        if box is None or np.isnan(box).any():
            return image
        height, width = image.shape[1:]
        left, top, right, bottom = (int(corner) for corner in np.floor(box + 0.5))
        # Annotations were often rounded up: one pixel over the edge is cut off, more is a mistake.
        if right > width + 1 or bottom > height + 1 or left >= width or top >= height:
            raise InputError(
                f"{self._table}, row {row + 1}: the box x_1={box[0]:g}, y_1={box[1]:g}, x_2={box[2]:g}, y_2={box[3]:g} "
                f"reaches out of {self._paths[row]}, which is {width} wide and {height} high. Mend the box"
            )
        return image[:, top : max(bottom, top + 1), left : max(right, left + 1)].contiguous()

    def _refuse_missing_files(self) -> None:
        for row, path in enumerate(self._paths):
            if not os.path.isfile(self._root / path):
                raise InputError(
                    f"{self._table}, row {row + 1}: no file at {self._root / path}. Paths start from {self._root}; "
                    f"give root if they start elsewhere, or leave such rows out: {LEAVE_OUT}"
                )


def _read(table: Path) -> dict[str, list[str | None]]:
    """The known columns as text; None where a cell is empty."""
    import pyarrow as pa

    if not table.is_file():
        raise InputError(f"no table at {table}")
    if table.suffix.lower() not in TABLES:
        raise InputError(f"{table} is no table: expected a name that ends in {', '.join(TABLES)}")
    try:
        read = _read_csv(table) if table.suffix.lower() == ".csv" else _read_parquet(table)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read the table {table}: {error}") from error
    if not read.num_rows:
        raise InputError(f"the table {table} has no rows")
    there = read.column_names
    for name in COLUMNS:
        if there.count(name) > 1:
            raise InputError(
                f"{table} has {there.count(name)} columns named {name!r}. Rename or remove all but one"
            )
    for name in REQUIRED:
        if name not in there:
            raise InputError(
                f"{table} has no column {name!r}, only {', '.join(there)}. Expected {','.join(REQUIRED)}"
                f"[,{','.join(COLUMNS[3:])}].{did_you_mean(name, [c for c in there if c not in COLUMNS])}"
            )
    for together in (SIDES, CORNERS):
        lacking = [name for name in together if name not in there]
        if lacking and len(lacking) < len(together):
            raise InputError(f"{table} has no column {lacking[0]!r}: {', '.join(together)} come together")
    return {name: [_text(cell) for cell in read[name].to_pylist()] for name in COLUMNS if name in there}


def _read_csv(table: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    # As text, or "007" would become 7 and a class called "NA" would vanish.
    types = dict.fromkeys(COLUMNS, pa.string())
    return csv.read_csv(
        table,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
    )


def _read_parquet(table: Path) -> Any:
    from pyarrow import parquet

    names = parquet.read_schema(table).names
    return parquet.ParquetFile(table).read(columns=[name for name in names if name in COLUMNS] or None)


def _text(cell: object) -> str | None:
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer():  # integers beside an empty cell become 3.0 in pandas
        return str(int(cell))
    return str(cell)


def _filled(columns: dict[str, list[str | None]], name: str, table: Path) -> list[str]:
    for row, cell in enumerate(columns[name]):
        if cell is None:
            raise InputError(f"{table}, row {row + 1}: {name} is empty")
    return [cell for cell in columns[name] if cell is not None]


def _splits(columns: dict[str, list[str | None]], table: Path) -> np.ndarray:
    names = _filled(columns, "split", table)
    for row, name in enumerate(names):
        if name not in SPELLINGS:
            raise InputError(
                f"{table}, row {row + 1}: split is {name!r}; expected train, validation (or val) or test."
                f"{did_you_mean(name, SPELLINGS)}"
            )
    return np.array([SPELLINGS[name] for name in names], dtype="<U5")


def _sides(
    columns: dict[str, list[str | None]], splits: np.ndarray, table: Path
) -> tuple[np.ndarray | None, np.ndarray | None]:
    if SIDES[0] not in columns:
        return None, None
    values = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    sides = np.ones((2, len(splits)), dtype=bool)
    for side, name in zip(sides, SIDES):
        for row, cell in enumerate(columns[name]):
            if splits[row] == "train":
                continue  # training has neither; open-metric-learning wants these cells empty
            value = values.get((cell or "").lower())
            if value is None:
                raise InputError(
                    f"{table}, row {row + 1}: {name} is {cell or 'empty'}; expected true or false, because the row is "
                    f"of the split {splits[row]}"
                )
            side[row] = value
    for split in ("val", "test"):
        chosen = splits == split
        for side, name in zip(sides, SIDES):
            if chosen.any() and not side[chosen].any():
                raise InputError(
                    f"{table}: {name} is false in every row of the split {split}, so nothing can be found"
                )
    return sides[0], sides[1]


def _boxes(columns: dict[str, list[str | None]], table: Path) -> np.ndarray | None:
    """float64 [N, 4], NaN where a row has no box; None when no row has one."""
    if CORNERS[0] not in columns:
        return None
    boxes = np.full((len(columns["path"]), 4), np.nan)
    for row, cells in enumerate(zip(*(columns[name] for name in CORNERS))):
        texts = [cell for cell in cells if cell is not None and cell.lower() not in NOTHING]
        if not texts:
            continue
        where = f"{table}, row {row + 1}: the box " + ", ".join(f"{n}={c}" for n, c in zip(CORNERS, cells))
        try:
            box = [float(text) for text in texts]
        except ValueError:
            raise InputError(f"{where} is not four numbers") from None
        if len(box) < 4 or not all(map(math.isfinite, box)):
            raise InputError(f"{where} is not complete; give all four corners or none")
        if box[0] >= box[2] or box[1] >= box[3] or box[0] < 0 or box[1] < 0:
            raise InputError(f"{where} is impossible: expected 0 <= x_1 < x_2 and 0 <= y_1 < y_2")
        boxes[row] = box
    return None if np.isnan(boxes).all() else boxes


def _ids(paths: list[str], boxes: np.ndarray | None, table: Path) -> list[str]:
    ids = list(paths)
    if boxes is not None:
        for row in np.flatnonzero(~np.isnan(boxes[:, 0])):
            ids[row] += "#" + ",".join(f"{corner:g}" for corner in boxes[row])
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in first:
            raise InputError(
                f"{table}, row {row + 1}: {name} is in row {first[name] + 1} already. An item has one row; one that "
                "is both query and gallery has is_query and is_gallery true"
            )
        first[name] = row
    return ids

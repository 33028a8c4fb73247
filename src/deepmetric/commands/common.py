"""What several commands share."""

from __future__ import annotations

import sys
from copy import copy
from typing import TYPE_CHECKING

from deepmetric.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from deepmetric.data import Dataset

RUN_HELP = "a run's folder, a model's folder, or user/name on the Hugging Face Hub"
DATA_HELP = "glyphs, a folder, a .zip, .csv or .parquet file, or a benchmark such as cub:FOLDER"


def add_embedding_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--skip_unreadable",
        "--skip-unreadable",
        action="store_true",
        help="leave out files that cannot be read, and name them",
    )
    parser.add_argument(
        "--batch_size", "--batch-size", type=int, default=64, metavar="N", help="images at a time"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that read images; 0: threads of this one",
    )


def open_items(source: str, split: str, skip_unreadable: bool) -> Dataset:
    """The items of one split of the data set a user named, or all of them for "all"."""
    from deepmetric.data import ClassSplit, open_dataset

    options = {"skip_unreadable": True} if skip_unreadable else {}
    try:
        dataset = open_dataset(source, **options)
    except InputError as error:
        if split != "all":
            raise
        # One or two classes cannot be dealt to splits, but they can be embedded and searched.
        try:
            dataset = open_dataset(source, split=ClassSplit(val=0, test=0), **options)
        except InputError:
            raise error from None
    _name_skipped(dataset)
    return one_split(dataset, split)


def without_unreadable(dataset: Dataset) -> Dataset:
    """The items that can be read; the others are named."""
    from deepmetric.data.unreadable import leave_out_unreadable

    rest = copy(dataset)
    leave_out_unreadable(rest)
    _name_skipped(rest)
    return rest


def _name_skipped(dataset: Dataset) -> None:
    for line in dataset.skipped:
        print(f"skipped {line}", file=sys.stderr)


def one_split(dataset: Dataset, split: str) -> Dataset:
    """The items of a split, or all of them for "all"."""
    return dataset if split == "all" else dataset.split(split)

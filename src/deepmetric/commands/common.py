"""What several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from deepmetric.data import Dataset

RUN_HELP = "a run's folder, a model's folder, or user/name on the Hugging Face Hub"
DATA_HELP = "glyphs, a folder, or a .zip, .csv or .parquet file"


def add_embedding_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--skip_unreadable",
        "--skip-unreadable",
        action="store_true",
        help="leave out files of DATA that cannot be read, and name them",
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


def open_data(source: str, skip_unreadable: bool) -> Dataset:
    """The data set a user named; what is skipped is named on stderr."""
    import sys

    from deepmetric.data import open_dataset

    dataset = open_dataset(source, **({"skip_unreadable": True} if skip_unreadable else {}))
    for line in dataset.skipped:
        print(f"skipped {line}", file=sys.stderr)
    return dataset


def one_split(dataset: Dataset, split: str) -> Dataset:
    """The items of a split, or all of them for "all"."""
    return dataset if split == "all" else dataset.split(split)


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

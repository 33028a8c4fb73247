"""Items on disk -> (image, label) batches. Each name loads its module when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepmetric.data.anchor_neighbour import AnchorNeighbourSampler as AnchorNeighbourSampler
    from deepmetric.data.benchmarks.base import Benchmark as Benchmark
    from deepmetric.data.benchmarks.cars import Cars196 as Cars196
    from deepmetric.data.benchmarks.check import NotTheBenchmark as NotTheBenchmark
    from deepmetric.data.benchmarks.cub import CUB200 as CUB200
    from deepmetric.data.benchmarks.inat import INaturalist2018 as INaturalist2018
    from deepmetric.data.benchmarks.inshop import InShop as InShop
    from deepmetric.data.benchmarks.sop import StanfordOnlineProducts as StanfordOnlineProducts
    from deepmetric.data.dataset import Dataset as Dataset
    from deepmetric.data.dataset import Item as Item
    from deepmetric.data.folder import FolderDataset as FolderDataset
    from deepmetric.data.folds import FoldDataset as FoldDataset
    from deepmetric.data.glyphs import GlyphsDataset as GlyphsDataset
    from deepmetric.data.hierarchical import HierarchicalSampler as HierarchicalSampler
    from deepmetric.data.images import UnreadableImage as UnreadableImage
    from deepmetric.data.images import decode as decode
    from deepmetric.data.loader import Batch as Batch
    from deepmetric.data.loader import make_loader as make_loader
    from deepmetric.data.loader import numbered as numbered
    from deepmetric.data.m_per_class import MPerClassSampler as MPerClassSampler
    from deepmetric.data.open import open_dataset as open_dataset
    from deepmetric.data.planned import PlannedSampler as PlannedSampler
    from deepmetric.data.shuffled import ShuffledSampler as ShuffledSampler
    from deepmetric.data.splits import ClassSplit as ClassSplit
    from deepmetric.data.table import TableDataset as TableDataset
    from deepmetric.data.triplets import TripletSampler as TripletSampler

_MODULES = {
    "AnchorNeighbourSampler": "anchor_neighbour",
    "Batch": "loader",
    "Benchmark": "benchmarks.base",
    "CUB200": "benchmarks.cub",
    "Cars196": "benchmarks.cars",
    "ClassSplit": "splits",
    "Dataset": "dataset",
    "FoldDataset": "folds",
    "FolderDataset": "folder",
    "GlyphsDataset": "glyphs",
    "HierarchicalSampler": "hierarchical",
    "INaturalist2018": "benchmarks.inat",
    "InShop": "benchmarks.inshop",
    "Item": "dataset",
    "MPerClassSampler": "m_per_class",
    "NotTheBenchmark": "benchmarks.check",
    "PlannedSampler": "planned",
    "ShuffledSampler": "shuffled",
    "StanfordOnlineProducts": "benchmarks.sop",
    "TableDataset": "table",
    "TripletSampler": "triplets",
    "UnreadableImage": "images",
    "decode": "images",
    "make_loader": "loader",
    "numbered": "loader",
    "open_dataset": "open",
}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'deepmetric.data' has no attribute {name!r}")
    return getattr(import_module(f"deepmetric.data.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])

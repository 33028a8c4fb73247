"""A tree of classes, by which level two classes have become one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepmetric.errors import InputError


class ClassTree(NamedTuple):
    """Which classes have merged at each level, and how far items of a class are from each other.

    :func:`deepmetric.training.build_class_tree` makes it from embeddings. Levels go from 0, where every class is a node
    of its own, to L, where all are one. Memory is L · C numbers: the level at which two classes merge is the first at
    which they share a node, and is looked up for the pairs that are asked for.
    """

    labels: Tensor  # int64 [C], ascending
    spread: Tensor  # [C], s_c: mean squared distance between two items of the class
    nodes: Tensor  # int64 [L + 1, C], the node that each class is in at each level
    thresholds: Tensor  # [L + 1], d_0 ... d_L, squared distances

    def positions(self, labels: Tensor) -> Tensor:
        """Where each of ``labels`` [N] stands in the tree: int64 [N].

        Raises:
            InputError: a label that the tree does not have.
        """
        known = self.labels.to(labels.device)
        where = torch.searchsorted(known, labels).clamp_max(len(known) - 1)
        missing = known[where] != labels
        if missing.any():
            raise InputError(
                f"the class tree has no class with label {int(labels[missing][0])}: it was built from "
                f"{len(known)} classes. Build it from embeddings of all training classes."
            )
        return where

    def merge_levels(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The first level at which classes share a node: int64 [R, K], for positions [R] and [K]; 0 for a class and
        itself."""
        apart = torch.zeros(len(rows), len(columns), dtype=torch.int64, device=rows.device)
        for level in self.nodes.to(rows.device):
            apart += level[rows][:, None] != level[columns]
        return apart

    def margins(self, rows: Tensor, columns: Tensor, beta: float) -> Tensor:
        """The violate margin β + d_H - s of anchors of the classes ``rows`` [R] and negatives of ``columns`` [K]."""
        merged = self.thresholds.to(rows.device)[self.merge_levels(rows, columns)]
        return beta + merged - self.spread.to(rows.device)[rows][:, None]

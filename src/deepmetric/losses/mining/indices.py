"""What miners return."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Triplets(NamedTuple):
    """Triplets (anchor[t], positive[t], negative[t]), each int64 [T]."""

    anchor: Tensor  # positions in the batch
    positive: Tensor  # positions among the references
    negative: Tensor  # positions among the references


class PairIndices(NamedTuple):
    """Positive pairs (anchor_positive[i], positive[i]) and negative pairs (anchor_negative[j], negative[j]).

    int64 [P], [P], [Q], [Q]. Where a miner takes one positive and one negative an anchor, P = Q and row i of
    all four is one triplet.
    """

    anchor_positive: Tensor  # positions in the batch
    positive: Tensor  # positions among the references
    anchor_negative: Tensor  # positions in the batch
    negative: Tensor  # positions among the references


def joined(parts: Iterable[tuple[Tensor, ...]], columns: int, device: torch.device) -> list[Tensor]:
    """The ``columns`` index tensors of all blocks, one after the other; empty without blocks."""
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return [torch.cat(column) for column in zip((empty,) * columns, *parts)]

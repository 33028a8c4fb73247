"""Rows of unit length, and embeddings that are several unit embeddings side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_rows(embeddings: Tensor) -> Tensor:
    """[B, d] with every row L2-normalised, in float32 also under autocast."""
    with torch.autocast(embeddings.device.type, enabled=False):
        # float64 stays as it is, so that gradients can be checked numerically.
        wide = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        return F.normalize(wide, dim=1)


def side_by_side(parts: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The parts [B, d_m], each L2-normalised, times its weight, concatenated: rows [B, Σ d_m] of unit length.

    A dot product of two such rows is the mean of the parts' cosines, weighted with the **squares** of ``weights``
    (None: all alike). Dividing by the length that all rows share changes no ranking.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    length = math.sqrt(sum(weight * weight for weight in weights))
    return torch.cat([unit_rows(part) * (weight / length) for part, weight in zip(parts, weights)], dim=1)

"""Which references count for which anchor, and how near they are: dense N x M matrices in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepmetric.losses.inputs import Batch


class Pairs(NamedTuple):
    """Which references count for which anchor. A pair of an anchor with its own copy is in neither mask."""

    positive: Tensor  # [N, M] bool, same label
    negative: Tensor  # [N, M] bool, another label


def pairs_of(batch: Batch) -> Pairs:
    """Positives and negatives by label; own copies left out by position, so duplicates stay."""
    same = batch.labels[:, None] == batch.ref_labels[None, :]
    if batch.own is None:
        return Pairs(same, ~same)
    other = batch.own[:, None] != torch.arange(len(batch.refs), device=same.device)[None, :]
    return Pairs(same & other, ~same & other)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [N, d] divided by their L2 norm. A zero row stays zero, with a finite gradient."""
    return rows / _norms(rows)[:, None]


def cosine(batch: Batch) -> Tensor:
    """Cosine similarities [N, M] of anchors and references, in [-1, 1] up to rounding.

    References are never copied: instead of unit rows, the columns of the product are divided by their norms.
    """
    if batch.refs is batch.anchors:
        unit = unit_rows(batch.anchors)
        return unit @ unit.T
    return (unit_rows(batch.anchors) @ batch.refs.T) / _norms(batch.refs)


def squared_distances(batch: Batch, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distances [N, M] of unit rows (``normalize``) or of the rows as given, and their
    noise.

    Both come from the one matrix product: D² = |x|² + |r|² - 2 x·r. A value within the rounding of that
    difference is exactly 0 with derivative 0: there the direction of the gradient is noise, and an exact copy
    must count as one. ``noise`` (broadcastable to [N, M]) is that rounding; differences below it are ties.
    """
    if normalize:
        squared = 2 - 2 * cosine(batch)
        noise = squared.new_tensor(2.0)
    else:
        anchor_norms = batch.anchors.square().sum(1)
        ref_norms = anchor_norms if batch.refs is batch.anchors else batch.refs.square().sum(1)
        squared = anchor_norms[:, None] + ref_norms[None, :] - 2 * batch.anchors @ batch.refs.T
        noise = (anchor_norms[:, None] + ref_norms[None, :]).detach()
    noise = 8 * torch.finfo(squared.dtype).eps * noise
    return torch.where(squared > noise, squared, 0), noise


def root(squared: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0, not infinite: an exact copy pulls and pushes nowhere."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


def _norms(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1)
    return torch.where(norms > 0, norms, 1)

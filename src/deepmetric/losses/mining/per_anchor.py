"""Miners that take one positive and one negative an anchor, or a few."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.inputs import checked_batch
from deepmetric.losses.mining.blocks import Block, blocks
from deepmetric.losses.mining.indices import PairIndices, Triplets, joined

Choice = Literal["all", "easy", "hard", "semihard"]


@torch.no_grad()
def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    normalize: bool = True,
) -> Triplets:
    """The furthest positive and the nearest negative of each anchor, by Euclidean distance.

    Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017, eq. 5. Anchors without
    a positive or without a negative are left out; of equally far references one is taken.

    Args:
        normalize: False takes distances of the rows as given.

    Other arguments, and errors raised, as of :class:`deepmetric.losses.PairLoss`.
    """
    anchor, positive, _, negative = batch_easy_hard(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        self_index,
        positive="hard",
        negative="hard",
        normalize=normalize,
    )
    return Triplets(anchor, positive, negative)


@torch.no_grad()
def batch_easy_hard(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    positive: Choice = "easy",
    negative: Choice = "semihard",
    normalize: bool = True,
) -> PairIndices:
    """One positive and one negative of each anchor, easy or hard ones, by Euclidean distance.

    Xuan, Stylianou, Pless, "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020: easy positives
    with semi-hard negatives, which let a class be spread out.

    Args:
        positive: "easy", the nearest; "hard", the furthest; "semihard", the furthest of those nearer than the
            chosen negative; "all" of them.
        negative: "easy", the furthest; "hard", the nearest; "semihard", the nearest of those further than the
            chosen positive; "all" of them.
        normalize: False takes distances of the rows as given.

    With one choice on both sides, anchors that lack either are left out, and row i of all four results is one
    triplet. With "all" on a side the two sides do not know of each other. Distances that only rounding parts
    are equal, of equally far references one is taken. Other arguments, and errors raised, as of
    :class:`deepmetric.losses.PairLoss`; an unknown word, and "semihard" beside "semihard" or "all", which name
    no pair to compare with, raise InputError too.
    """
    check_choice("mining.batch_easy_hard", "positive", positive, Choice)
    check_choice("mining.batch_easy_hard", "negative", negative, Choice)
    if "semihard" in (positive, negative) and {positive, negative} <= {"semihard", "all"}:
        raise InputError(
            f"mining.batch_easy_hard cannot take {positive!r} positives with {negative!r} negatives: semi-hard is "
            "further, or nearer, than the one that the other side chose. Let the other side be 'easy' or 'hard'."
        )
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    parts = []
    for block in blocks(batch, "squared_distance", normalize=normalize):
        if positive == "semihard":
            n = _chosen(block, block.negative, furthest=negative == "easy")
            p = _chosen(block, block.positive & block.nearer(slice(None), _order(block, n)), furthest=True)
        else:
            p = _chosen(block, block.positive, furthest=positive == "hard")
            candidates = block.negative
            if negative == "semihard":
                candidates = candidates & block.further(slice(None), _order(block, p))
            n = _chosen(block, candidates, furthest=negative == "easy")
        with_p, with_n = p >= 0, n >= 0
        if "all" not in (positive, negative):
            with_p = with_n = with_p & with_n
        positives = block.pairs(block.positive) if positive == "all" else _pairs(block, p, with_p)
        negatives = block.pairs(block.negative) if negative == "all" else _pairs(block, n, with_n)
        parts.append((*positives, *negatives))
    return PairIndices(*joined(parts, 4, batch.anchors.device))


@torch.no_grad()
def n_hard(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    positives: int | tuple[int, int] = 1,
    negatives: int | tuple[int, int] = 1,
    normalize: bool = True,
) -> Triplets:
    """Each anchor's hardest positives with each of its hardest negatives, by Euclidean distance.

    :func:`batch_hard` (Hermans et al. 2017) with more than one of a kind.

    Args:
        positives: how many, the furthest first; a pair (first, last) means those ranks, counted from 1, both
            ends included: (2, 3) leaves out the very hardest, which may be a wrong label.
        negatives: how many, the nearest first, or ranks.
        normalize: False takes distances of the rows as given.

    An anchor that has fewer gives what it has. Of equally far references at the last rank one is taken. Other
    arguments, and errors raised, as of :class:`deepmetric.losses.PairLoss`; ranks that are not 1 <= first <=
    last raise InputError too.
    """
    positive_ranks = _checked_ranks("positives", positives)
    negative_ranks = _checked_ranks("negatives", negatives)
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    most = len(batch.refs)
    width = min(positive_ranks[1], most) * min(negative_ranks[1], most)
    parts = []
    for block in blocks(batch, "squared_distance", normalize=normalize, width=width):
        p = _ranked(block, block.positive, positive_ranks, furthest=True)[:, :, None]
        n = _ranked(block, block.negative, negative_ranks, furthest=False)[:, None, :]
        row, i, j = ((p >= 0) & (n >= 0)).nonzero(as_tuple=True)
        parts.append((block.anchors(row), p[row, i, 0], n[row, 0, j]))
    return Triplets(*joined(parts, 3, batch.anchors.device))


def _chosen(block: Block, mask: Tensor, *, furthest: bool) -> Tensor:
    """The furthest or nearest reference of ``mask`` [B, M] for each row, -1 where there is none, [B]."""
    if furthest:
        ref = block.order.masked_fill(~mask, -torch.inf).argmax(1)
    else:
        ref = block.order.masked_fill(~mask, torch.inf).argmin(1)
    return torch.where(mask.any(1), ref, -1)


def _order(block: Block, ref: Tensor) -> Tensor:
    """The order of one reference a row [B]; any where ``ref`` is -1, for such a row comes to nothing."""
    return block.order.gather(1, ref.clamp_min(0)[:, None])[:, 0]


def _pairs(block: Block, ref: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    row = kept.nonzero()[:, 0]
    return block.anchors(row), ref[row]


def _ranked(block: Block, mask: Tensor, ranks: tuple[int, int], *, furthest: bool) -> Tensor:
    """References of the given ranks among those of ``mask`` [B, M], -1 where there are fewer, [B, K]."""
    nothing = -torch.inf if furthest else torch.inf
    k = min(ranks[1], mask.shape[1])
    order, ref = block.order.masked_fill(~mask, nothing).topk(k, dim=1, largest=furthest)
    return torch.where(order.isfinite(), ref, -1)[:, ranks[0] - 1 :]


def _checked_ranks(name: str, ranks: int | tuple[int, int]) -> tuple[int, int]:
    first, last = (1, ranks) if isinstance(ranks, int) else ranks
    if not 1 <= first <= last:
        raise InputError(
            f"`{name}` of mining.n_hard must be a number from 1 up, or ranks (first, last) with 1 <= first <= last; "
            f"got {ranks!r}."
        )
    return first, last

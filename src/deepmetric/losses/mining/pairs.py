"""Miners of positive and of negative pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.hdc import share_of
from deepmetric.losses.inputs import Batch, checked_batch
from deepmetric.losses.mining.blocks import Form, Rows, blocks, rows_at_once
from deepmetric.losses.mining.indices import PairIndices, joined


@torch.no_grad()
def multi_similarity(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    epsilon: float = 0.1,
) -> PairIndices:
    """Pairs that are hard beside the anchor's other pairs: the mining of the multi-similarity loss.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, eq.
    10 and 11. With S the cosine, keep

        negative j of anchor i where S_ij > min over positives S_ik - ε
        positive j of anchor i where S_ij < max over negatives S_ik + ε

    Args:
        epsilon: ε, the slack.

    An anchor without positives, or without negatives, keeps nothing. Other arguments, and errors raised, as of
    :class:`deepmetric.losses.PairLoss`.
    """
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    parts = []
    for block in blocks(batch, "cosine"):
        # The distance is -S.
        furthest = block.distance.masked_fill(~block.positive, -torch.inf).amax(1, keepdim=True)
        nearest = block.distance.masked_fill(~block.negative, torch.inf).amin(1, keepdim=True)
        positive = block.positive & (block.distance + epsilon > nearest)
        negative = block.negative & (block.distance - epsilon < furthest)
        parts.append((*block.pairs(positive), *block.pairs(negative)))
    return PairIndices(*joined(parts, 4, batch.anchors.device))


@torch.no_grad()
def pair_margin(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    positive_margin: float,
    negative_margin: float,
    form: Form = "distance",
    normalize: bool = True,
) -> PairIndices:
    """Positives beyond a margin and negatives within one: the pairs that cost something in a contrastive loss.

    Positives with D > positive_margin and negatives with D < negative_margin; with ``form="cosine"`` positives
    with S < positive_margin and negatives with S > negative_margin.

    Args:
        form: D is the "distance" or the "squared_distance"; or "cosine", whose margins are similarities.
        normalize: False takes the rows as given (ignored by "cosine").

    Other arguments, and errors raised, as of :class:`deepmetric.losses.PairLoss`.
    """
    check_choice("mining.pair_margin", "form", form, Form)
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    sign = -1.0 if form == "cosine" else 1.0
    parts = []
    for block in blocks(batch, form, normalize=normalize):
        positive = block.positive & (block.distance > sign * positive_margin)
        negative = block.negative & (block.distance < sign * negative_margin)
        parts.append((*block.pairs(positive), *block.pairs(negative)))
    return PairIndices(*joined(parts, 4, batch.anchors.device))


@torch.no_grad()
def hdc(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    share: float = 0.5,
    among: PairIndices | None = None,
    normalize: bool = True,
) -> PairIndices:
    """The hardest share of all pairs of the batch: the furthest positives and the nearest negatives.

    Yuan et al., "Hard-Aware Deeply Cascaded Embedding", ICCV 2017. Of P positive pairs the ceil(share · P)
    furthest are kept, of Q negative pairs the ceil(share · Q) nearest, whatever their anchors. Which one of
    equally far pairs is the last to be kept is not settled.

    Args:
        share: kept fraction, above 0 and up to 1.
        among: choose among these pairs only, those that the model below in the cascade has kept; None: all.
        normalize: False takes the rows as given.

    Other arguments, and errors raised, as of :class:`deepmetric.losses.PairLoss`; ``share`` out of its range
    raises InputError too.
    """
    if not 0 < share <= 1:
        raise InputError(f"`share` of mining.hdc must be above 0 and at most 1; got {share}.")
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    if among is not None:
        return _hardest_among(among, Rows(batch, normalize=normalize), share)
    positives, negatives = _pair_counts(batch)
    furthest = _Nearest(share_of(share, positives), batch.anchors)
    nearest = _Nearest(share_of(share, negatives), batch.anchors)
    for block in blocks(batch, "squared_distance", normalize=normalize):
        for kept, mask, sign in ((furthest, block.positive, -1.0), (nearest, block.negative, 1.0)):
            value = sign * block.distance
            row, ref = (mask & (value < kept.limit)).nonzero(as_tuple=True)
            kept.add(value[row, ref], block.anchors(row), ref)
    return PairIndices(*furthest.result(), *nearest.result())


def _hardest_among(among: PairIndices, rows: Rows, share: float) -> PairIndices:
    out = []
    for anchor, ref, sign in (
        (among.anchor_positive, among.positive, -1.0),
        (among.anchor_negative, among.negative, 1.0),
    ):
        nearest = _Nearest(share_of(share, len(anchor)), rows.batch.anchors)
        step = rows_at_once(rows.batch.anchors.shape[1])
        for a, r in zip(anchor.split(step), ref.split(step)):
            nearest.add(sign * (rows.anchors(a) - rows.refs(r)).square().sum(1), a, r)
        out += nearest.result()
    return PairIndices(*out)


def _pair_counts(batch: Batch) -> tuple[int, int]:
    """How many positive and how many negative pairs there are."""
    classes, place = torch.cat([batch.labels, batch.ref_labels]).unique(return_inverse=True)
    n, c = len(batch.labels), len(classes)
    same = int((place[:n].bincount(minlength=c) * place[n:].bincount(minlength=c)).sum())
    other = n * len(batch.ref_labels) - same
    if batch.own is None or not len(batch.ref_labels):
        return same, other
    here = batch.own >= 0
    own_same = int((here & (batch.ref_labels[batch.own.clamp_min(0)] == batch.labels)).sum())
    return same - own_same, other - (int(here.sum()) - own_same)


class _Nearest:
    """The ``k`` pairs of least value among all that are added.

    Candidates pile up, k or a block of them, before they are sorted out, so that the work is proportional to what
    is added. From ``limit`` on, the k-th value so far, none is needed.
    """

    def __init__(self, k: int, like: Tensor) -> None:
        self.k, self.limit = k, float("inf")
        empty = torch.zeros(0, dtype=torch.int64, device=like.device)
        self.parts = [(like.new_zeros(0), empty, empty)]
        self.waiting = 0

    def add(self, value: Tensor, anchor: Tensor, ref: Tensor) -> None:
        self.parts.append((value, anchor, ref))
        self.waiting += len(value)
        if self.waiting > max(self.k, rows_at_once(1)):
            self._sort_out()

    def result(self) -> tuple[Tensor, Tensor]:
        self._sort_out()
        _, anchor, ref = self.parts[0]
        return anchor, ref

    def _sort_out(self) -> None:
        value, anchor, ref = (torch.cat(column) for column in zip(*self.parts))
        if len(value) > self.k:
            value, kept = value.topk(self.k, largest=False, sorted=False)
            anchor, ref = anchor[kept], ref[kept]
        if self.k and len(value) == self.k:
            self.limit = float(value.max())
        self.parts, self.waiting = [(value, anchor, ref)], 0

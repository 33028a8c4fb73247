"""Histogram loss (Ustinova, Lempitsky 2016)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.ranking.bins import soft_histogram
from deepmetric.losses.ranking.ranked import Block, Ranked

Pairs = Literal["all", "in_triplets"]


class HistogramLoss(PairLoss):
    r"""The probability that a random negative pair is more similar than a random positive pair.

    Ustinova, Lempitsky, "Learning Deep Embeddings with Histogram Loss", NIPS 2016, eq. 1 to 6. Rows are
    L2-normalised. Cosines, in [-1, 1], are shared between the two nearest of num_bins + 1 nodes; h⁺ and h⁻ are the
    histograms of positive and of negative pairs, each of sum 1:

        L = Σ_r h⁻_r Σ_{q≤r} h⁺_q

    Without a positive or without a negative pair 0 with zero gradient. Range [0, 1]; items of one node count as in
    the wrong order, so that it does not fall to 0 while the histograms overlap.

    Args:
        num_bins: bins over [-1, 1], at least 1 (the paper's R nodes are R - 1 bins).
        pairs: "all" pairs, as in the paper, or those "in_triplets": negative pairs of two items that both lack a
            positive are left out, as PML does.

    GPW weight of a similarity between nodes r and r + 1: h⁻_r/(Δ|P|) on a positive, h⁺_{r+1}/(Δ|N|) on a
    negative, Δ the width of a bin.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-0.6, 0.8]])
    >>> round(HistogramLoss(10)(x, torch.tensor([0, 0, 1])).item(), 4)
    0.0
    """

    def __init__(self, num_bins: int = 100, pairs: Pairs = "all") -> None:
        super().__init__()
        if num_bins < 1:
            raise InputError(f"`num_bins` of HistogramLoss must be at least 1; got {num_bins}.")
        check_choice("HistogramLoss", "pairs", pairs, Pairs)
        self.num_bins = num_bins
        self.pairs: Pairs = pairs

    def of_batch(self, batch: Batch) -> Tensor:
        ranked = Ranked(batch)
        nodes = self.num_bins + 1
        in_triplet = self._in_triplet(ranked) if self.pairs == "in_triplets" else None

        def histograms(block: Block) -> Tensor:
            place = (1 + block.similarity) * (self.num_bins / 2)
            negative = block.negative
            if in_triplet is not None:
                anchor, ref = in_triplet
                negative = negative & (anchor[block.rows, None] | ref[None, :])
            both = [soft_histogram(place, counted, nodes) for counted in (block.positive, negative)]
            return torch.stack(both, 1)

        positive, negative = ranked.per_query(histograms, compares=False).sum(0)
        # A histogram's sum is the number of its pairs.
        pairs = positive.sum().detach().clamp_min(1) * negative.sum().detach().clamp_min(1)
        return (negative * positive.cumsum(0)).sum() / pairs

    def _in_triplet(self, ranked: Ranked) -> tuple[Tensor, Tensor]:
        """Which anchors [N] and which references [M] have a positive on the other side, own copies apart."""
        anchors = ranked.labels.sort().values
        labels = ranked.ref_labels.to(anchors.dtype)
        of_refs = torch.searchsorted(anchors, labels, right=True) - torch.searchsorted(anchors, labels)
        if ranked.own is not None:
            of_refs = (
                of_refs.index_add(0, ranked.own.clamp_min(0), -ranked.has_own) if len(labels) else of_refs
            )
        return ranked.others > 0, of_refs > 0

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}, pairs={self.pairs!r}"

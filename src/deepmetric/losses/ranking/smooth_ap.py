"""Smooth-AP loss (Brown et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.ranking.ranked import Block, Ranked


class SmoothAPLoss(PairLoss):
    r"""One minus average precision, "ranked before" replaced by a steep logistic function.

    Brown, Xie, Kalogeiton, Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV
    2020, eq. 5. Rows are L2-normalised, s_j is the cosine of the query with item j, g(z) = 1/(1 + exp(-z/τ)):

        AP = 1/|P| Σ_{i in P} [1 + Σ_{j in P, j≠i} g(s_j - s_i)] / [1 + Σ_{j in P and N, j≠i} g(s_j - s_i)]

    and the loss is the mean of 1 - AP over queries with a positive; without any it is 0 with zero gradient.
    Range [0, 1]. Classes of any size, in any order. Every positive is compared with every item, in blocks of queries
    that are computed again in the backward pass: memory grows with the batch squared, not cubed.

    Args:
        temperature: τ, above 0. A pair of items has a gradient only while their similarities differ by few τ.
        count_query: the query itself, where it is among the references, is one of its positives, as in the
            authors' code and in PML (a class of one item then counts as found, nearly); the paper leaves it out.

    GPW weight, with r the denominator and r⁺ the numerator: Σ_i r⁺_i/r_i² g'(s_j - s_i)/|P| on a negative j.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = SmoothAPLoss()(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # the first finds its positive at rank 1, the second at rank 2
    0.25
    """

    def __init__(self, temperature: float = 0.01, count_query: bool = False) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"`temperature` of SmoothAPLoss must be above 0; got {temperature}.")
        self.temperature = temperature
        self.count_query = count_query

    def of_batch(self, batch: Batch) -> Tensor:
        ranked = Ranked(batch, count_query=self.count_query)

        def precision(block: Block) -> Tensor:
            query, gap = block.gaps()
            before = torch.sigmoid(gap / self.temperature)
            rank_of_positives = block.over_positives(query, before) + 0.5  # itself is g(0) = 0.5 of it
            ratio = rank_of_positives / (rank_of_positives + block.over_negatives(query, before))
            return block.per_query(query, ratio)

        found = ranked.per_query(precision) / ranked.positives.clamp_min(1)
        return ranked.mean(1 - found, ranked.positives > 0)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, count_query={self.count_query}"

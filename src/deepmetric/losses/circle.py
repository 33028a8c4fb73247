"""Circle loss (Sun et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

Over = Literal["anchor", "batch"]


class CircleLoss(PairLoss):
    r"""Every similarity is weighted by how far it is from where it should be.

    Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020, eq. 6 with the
    margins of eq. 8. Rows are L2-normalised, S is the cosine.

        l_i = log( 1 + Σ_n exp(γ α_n (S_in - m)) · Σ_p exp(-γ α_p (S_ip - (1 - m))) )
        α_p = [1 + m - S_ip]₊,  α_n = [S_in + m]₊

    The weights α count as constants in the gradient, as in the paper, so it is not the derivative of the
    value.

    Args:
        m: relaxation; similarities are drawn towards 1 + m and -m (0.25 for faces, 0.4 for retrieval).
        gamma: γ, sharpness, above 0 (256 for faces, 80 for retrieval).
        over: "anchor" has one l_i an anchor and averages those of anchors with a positive and a negative;
            "batch" has a single l, its sums over all pairs of the batch, each counted once (a released code of
            the paper). Against references that are not just the batch itself all pairs of an anchor and a
            reference count.

    Anchors without positives or without negatives cost 0 (over "anchor"). Without a pair of each sort the loss
    is 0 with zero gradient. Range [0, ∞).

    GPW weight (before the divisor), with Z = 1 - exp(-l): Z γ α_p softmax_p on a positive, Z γ α_n softmax_n on
    a negative, the softmax being that of the exponents among the same sort.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = CircleLoss(m=0.25, gamma=4.0)(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # exponents 4·0.85·0.35 - 4·0.45·0.05 and 4·1.21·0.71 - 4·0.45·0.05
    2.3842
    """

    over_parts = True

    def __init__(self, m: float = 0.4, gamma: float = 80.0, over: Over = "anchor") -> None:
        super().__init__()
        if gamma <= 0:
            raise InputError(f"`gamma` of CircleLoss must be above 0; got {gamma}.")
        check_choice("CircleLoss", "over", over, Over)
        self.m = m
        self.gamma = gamma
        self.over = over

    def of_batch(self, batch: Batch) -> Tensor:
        m, gamma = self.m, self.gamma
        pairs = Comparison(*batch)
        positives = pairs.positives.logsumexp(
            fn=lambda s: gamma * (1 + m - s).relu() * (1 - m - s), slope=lambda s: -gamma * (1 + m - s).relu()
        )
        # γ [s + m]₊ (s - m) is γ (s² - m²) with s not below -m: few passes over a tile.
        negatives = pairs.negatives.logsumexp(
            fn=lambda s: s.clamp_min(-m).square_().sub_(m * m).mul_(gamma),
            slope=lambda s: s.clamp_min(-m).add_(m).mul_(gamma),
        )
        has_positive, has_negative = pairs.positive_count > 0, pairs.negative_count > 0
        if self.over == "batch":
            positives, negatives = _over_all(positives, has_positive), _over_all(negatives, has_negative)
            has_positive, has_negative = has_positive.any(), has_negative.any()
            if _is_itself(batch):  # both orders of a pair were counted
                positives, negatives = positives - math.log(2), negatives - math.log(2)
        both = has_positive & has_negative
        costs = torch.where(both, softplus(torch.where(both, positives + negatives, 0), threshold=40.0), 0)
        return costs.sum() / both.sum().clamp_min(1)

    def extra_repr(self) -> str:
        return f"m={self.m}, gamma={self.gamma}, over={self.over!r}"


def _over_all(per_anchor: Tensor, some: Tensor) -> Tensor:
    """log Σ exp of the anchors' sums; finite, and without a gradient of NaN, over nothing."""
    return torch.where(some.any(), per_anchor, 0).logsumexp(0) if len(some) else per_anchor.sum()


def _is_itself(batch: Batch) -> bool:
    """Whether the references are the anchors' own copies and nothing else."""
    if batch.own is None:
        return False
    copies, refs = int((batch.own >= 0).sum()), len(batch.refs)
    if batch.processes is not None:
        copies, refs = batch.processes.every([copies, refs], batch.own.device).sum(0).tolist()
    return copies == refs == len(batch.anchors)

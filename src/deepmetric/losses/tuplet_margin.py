"""Tuplet margin loss (Yu, Tao 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison


class TupletMarginLoss(PairLoss):
    r"""Each positive against all negatives of its anchor, a few degrees of slack granted to the positive.

    Yu, Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019, eq. 5. Rows are L2-normalised, θ is the
    angle between two of them, cos θ = S. A positive pair (i, p) costs

        l_ip = log( 1 + Σ_n exp(s (cos θ_in - cos(θ_ip - β))) )

    and the loss is the mean over all pairs of an anchor and a positive. The paper adds
    :class:`IntraPairVarianceLoss` to it.

    Args:
        margin: β in degrees, from 0 up to 90 (5.73° is the paper's 0.1).
        scale: s, above 0.

    An anchor without positives has no term; without negatives its terms are 0. Without any pair the loss is 0
    with zero gradient. Where a positive is an exact copy its angle takes no gradient. Range [0, ∞).

    GPW weight (before the divisor), of each positive pair, with e_n the exponentials: s e_n / (1 + Σe) on a
    negative, s Σe / (1 + Σe) · sin(θ_ip - β) / sin θ_ip on the positive: nearer than β it is pushed away.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = TupletMarginLoss(margin=0.0, scale=2.0)(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # without a margin NTXentLoss of temperature 1/s
    0.6895
    """

    over_parts = True

    def __init__(self, margin: float = 5.73, scale: float = 64.0) -> None:
        super().__init__()
        if not 0 <= margin <= 90:
            raise InputError(
                f"`margin` of TupletMarginLoss must be an angle between 0 and 90 degrees; got {margin}."
            )
        if scale <= 0:
            raise InputError(f"`scale` of TupletMarginLoss must be above 0; got {scale}.")
        self.margin = margin
        self.scale = scale

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        along, across = math.cos(math.radians(self.margin)), math.sin(math.radians(self.margin))

        def cost(similarity: Tensor, others: Tensor) -> Tensor:
            # cos(θ - β) by the addition theorem: no arccos, which is inaccurate near 1.
            relaxed = along * similarity + across * _sine(similarity)
            return softplus(others - self.scale * relaxed, threshold=40.0)

        costs = pairs.positives.sum(cost, pairs.negatives.logsumexp(self.scale))
        return costs.sum() / pairs.positive_count.sum().clamp_min(1)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, scale={self.scale}"


def _sine(cosine: Tensor) -> Tensor:
    """√(1 - cosine²); 0 with derivative 0 where that is within the rounding of the cosine."""
    squared = 1 - cosine * cosine
    apart = squared > 16 * torch.finfo(cosine.dtype).eps
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)

"""Binomial deviance loss (Yi, Lei, Li 2014)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.hard_mining import hardest_bound
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

Reduction = Literal["anchors", "pairs"]


class BinomialDevianceLoss(PairLoss):
    r"""A logistic cost of every pair's cosine, positives and negatives averaged apart.

    Yi, Lei, Li, "Deep Metric Learning for Practical Person Re-Identification", ICPR 2014, with the slopes of
    both kinds of pairs apart, as Ustinova and Lempitsky (2016) and Wang et al. (GPW, 2019) have it::

        p_ij = log(1 + exp(-alpha (S_ij - base)))     of a positive
        n_ij = log(1 + exp(beta (S_ij - base)))       of a negative

    Args:
        alpha: slope of the positives.
        beta: slope of the negatives (alpha · C in the notation of a cost C on negatives).
        base: the cosine at which a pair costs log 2.
        epsilon: keep only positives with S < max S of the negatives + epsilon and negatives with S > min S of
            the positives - epsilon; None: no mining.
        scaled: multiply p by 2/alpha and n by 2/beta, so that slopes do not weigh the sides against each other
            (Deep_Metric does so where it mines).
        reduction: "anchors" is 1/N Σ_i (mean_{P_i} p + mean_{N_i} n), where an anchor that lacks either side
            costs 0; "pairs" is the mean over all positive pairs plus the mean over all negative pairs, the
            paper's weights.

    GPW weight ("anchors"): alpha σ(alpha (base - S)) / (N |P_i|) and beta σ(beta (S - base)) / (N |N_i|), times
    2/slope if ``scaled``.

    Range [0, ∞), never 0 where there is a pair. No pair: 0 with zero gradient.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = BinomialDevianceLoss(beta=10.0)
    >>> round(loss(x, torch.tensor([0, 0, 1])).item(), 4)  # (2 log(1 + e^-0.6) + log(1 + e) + log(1 + e^4.6)) / 3
    2.2661
    """

    over_parts = True

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 40.0,
        base: float = 0.5,
        epsilon: float | None = None,
        scaled: bool = False,
        reduction: Reduction = "anchors",
    ) -> None:
        super().__init__()
        if alpha <= 0 or beta <= 0:
            raise InputError(
                f"`alpha` and `beta` of BinomialDevianceLoss must be above 0; got {alpha} and {beta}."
            )
        check_choice("BinomialDevianceLoss", "reduction", reduction, Reduction)
        if epsilon is not None and reduction == "pairs":
            raise InputError(
                "`epsilon` of BinomialDevianceLoss chooses pairs of one anchor, reduction='pairs' averages over "
                "all anchors. Use reduction='anchors' with it."
            )
        self.alpha = alpha
        self.beta = beta
        self.base = float(base)
        self.epsilon = epsilon
        self.scaled = scaled
        self.reduction = reduction

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        if self.epsilon is not None:
            below, above = self._mined(pairs, self.epsilon)
        else:
            below = pairs.positives.softplus_sum(-self.alpha, self.base)
            above = pairs.negatives.softplus_sum(self.beta, self.base)
        if self.scaled:
            below, above = 2 / self.alpha * below, 2 / self.beta * above
        positives, negatives = pairs.positive_count, pairs.negative_count
        if self.reduction == "pairs":
            return below.sum() / positives.sum().clamp_min(1) + above.sum() / negatives.sum().clamp_min(1)
        if self.epsilon is None:
            below, above = below / positives.clamp_min(1), above / negatives.clamp_min(1)
        complete = (positives > 0) & (negatives > 0)
        return torch.where(complete, below + above, 0).sum() / max(len(batch.anchors), 1)

    def _mined(self, pairs: Comparison, epsilon: float) -> tuple[Tensor, Tensor]:
        least = hardest_bound(pairs.positives.min() - epsilon)
        above, kept, most = pairs.negatives.softplus_sum_beyond(self.beta, self.base, least)
        most = hardest_bound(most + epsilon)
        below, positives, _ = pairs.positives.softplus_sum_beyond(-self.alpha, self.base, most)
        return below / positives.clamp_min(1), above / kept.clamp_min(1)

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, base={self.base}, epsilon={self.epsilon}, "
            f"scaled={self.scaled}, reduction={self.reduction!r}"
        )

"""Multi-similarity loss with its mining (Wang et al. 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

Reduction = Literal["anchors", "kept"]


class MultiSimilarityLoss(PairLoss):
    r"""A soft count of the hard positives and of the hard negatives of each anchor.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019. Rows
    are L2-normalised, S is the cosine. Mining, from all pairs of anchor i:

        keep negative j where S_ij > min over positives S_ik - ε
        keep positive j where S_ij < max over negatives S_ik + ε

    and on the kept pairs

        l_i = 1/α log(1 + Σ_p exp(-α (S_ip - λ))) + 1/β log(1 + Σ_n exp(β (S_in - λ)))

    Args:
        alpha: α, sharpness on positives.
        beta: β, sharpness on negatives.
        base: λ, the similarity at which a pair's own weight turns (0.5 in the authors' code).
        epsilon: ε, the slack of the mining; None keeps every pair.
        reduction: "anchors" divides the sum of l_i by the number of anchors, "kept" by the number of those
            that keep a positive and a negative.

    An anchor without positives, or without negatives: with mining nothing of it is kept and it counts 0;
    without mining its other half still counts. Without any pair the loss is 0 with zero gradient. Range [0,
    ∞).

    GPW weight (before the divisor), on kept pairs: exp(-α(S - λ)) / (1 + Σ_p exp(-α(S_ip - λ))) and
    exp(β(S - λ)) / (1 + Σ_n exp(β(S_in - λ))).

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> round(MultiSimilarityLoss()(x, torch.tensor([0, 0, 1])).item(), 4)  # only anchor 1 keeps pairs
    0.2262
    """

    over_parts = True

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = 0.1,
        reduction: Reduction = "anchors",
    ) -> None:
        super().__init__()
        if alpha <= 0 or beta <= 0:
            raise InputError(f"`alpha` and `beta` must be above 0; got alpha={alpha}, beta={beta}.")
        check_choice("MultiSimilarityLoss", "reduction", reduction, Reduction)
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon
        self.reduction = reduction

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        if self.epsilon is None:
            above, below = pairs.negatives.logsumexp(self.beta), pairs.positives.logsumexp(-self.alpha)
        else:
            # Thresholds come from all pairs of an anchor; over nothing they are infinite and nothing is kept.
            least = pairs.positives.min() - self.epsilon
            above, most = pairs.negatives.logsumexp_and_hardest(self.beta, beyond=least)
            below = pairs.positives.logsumexp(-self.alpha, beyond=most + self.epsilon)
        left = log1p_exp(below + self.alpha * self.base)
        right = log1p_exp(above - self.beta * self.base)
        scaled = torch.add(left, right, alpha=self.alpha / self.beta)  # alpha times what an anchor costs
        if self.reduction == "anchors":
            return scaled.sum() / (self.alpha * max(len(scaled), 1))
        kept = below.isfinite() & above.isfinite()
        return torch.where(kept, scaled, 0).sum() / (self.alpha * kept.sum().clamp_min(1))

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, base={self.base}, epsilon={self.epsilon}, "
            f"reduction={self.reduction!r}"
        )


def log1p_exp(z: Tensor) -> Tensor:
    """log(1 + exp(z)), 0 with derivative 0 at minus infinity; the identity from where float64 cannot tell."""
    return softplus(z, threshold=40.0)

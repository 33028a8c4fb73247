"""Multi-similarity loss with its mining (Wang et al. 2019)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from deepmetric.errors import InputError, did_you_mean
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.pairs import Pairs, cosine, pairs_of

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
        if reduction not in get_args(Reduction):
            raise InputError(
                f"`reduction` of MultiSimilarityLoss is {reduction!r}; expected one of "
                f"{', '.join(get_args(Reduction))}.{did_you_mean(reduction, get_args(Reduction))}"
            )
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon
        self.reduction = reduction

    def of_batch(self, batch: Batch) -> Tensor:
        similarity = cosine(batch)
        pairs = pairs_of(batch)
        if self.epsilon is not None:
            pairs = mine(similarity, pairs, self.epsilon)
        shifted = similarity - self.base
        per_anchor = (
            log1p_sum_exp(-self.alpha * shifted, pairs.positive) / self.alpha
            + log1p_sum_exp(self.beta * shifted, pairs.negative) / self.beta
        )
        if self.reduction == "anchors":
            return per_anchor.sum() / max(len(per_anchor), 1)
        kept = pairs.positive.any(1) & pairs.negative.any(1)
        return torch.where(kept, per_anchor, 0).sum() / kept.sum().clamp_min(1)

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, base={self.base}, epsilon={self.epsilon}, "
            f"reduction={self.reduction!r}"
        )


def mine(similarity: Tensor, pairs: Pairs, epsilon: float) -> Pairs:
    """The pairs that are hard beside the anchor's other pairs; nothing where it lacks positives or negatives.

    ``similarity`` [N, M]; the thresholds come from all pairs of an anchor and take no gradient.
    """
    similarity = similarity.detach()
    if similarity.shape[1] == 0:
        return pairs
    least_positive = similarity.masked_fill(~pairs.positive, torch.inf).amin(1, keepdim=True)
    most_negative = similarity.masked_fill(~pairs.negative, -torch.inf).amax(1, keepdim=True)
    return Pairs(
        pairs.positive & (similarity - epsilon < most_negative),
        pairs.negative & (similarity + epsilon > least_positive),
    )


def log1p_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """log(1 + Σ exp(value)) over the masked entries of each row, [N, M] -> [N]; 0 where the mask is empty.

    The 1 enters as a column of zeros, so that no row is empty and its gradient is 0 instead of NaN.
    """
    one = values.new_zeros(len(values), 1)
    return torch.cat([one, values.masked_fill(~mask, -torch.inf)], dim=1).logsumexp(1)

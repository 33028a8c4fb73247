"""Supervised contrastive loss (Khosla et al. 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

Reduction = Literal["paired", "anchors"]


class SupConLoss(PairLoss):
    r"""Positives share the softmax over all other items evenly.

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, eq. 2 (L_out). Rows are L2-normalised, S is
    the cosine, k runs over positives and negatives of anchor i:

        l_i = τ / τ_b · -1/|P_i| Σ_p log( exp(S_ip / τ) / Σ_k exp(S_ik / τ) )

    Args:
        temperature: τ, above 0 (the paper's best is 0.1; its code has 0.07).
        base_temperature: τ_b, of the factor that the authors' code puts before the loss (there 0.07); None: no
            factor.
        reduction: "paired" divides the sum of l_i by the number of anchors that have a positive, "anchors" by
            that of all, as the authors' code does.

    An anchor without positives costs 0. Without negatives the softmax is over the positives alone, whose
    minimum is above 0 and reached where all are equally near. Without any pair the loss is 0 with zero
    gradient. Range [0, ∞).

    GPW weight (before the divisor), with p_ik = exp(S_ik / τ) / Σ_k exp(S_ik / τ): (1/|P_i| - p_ip) / τ on a
    positive, p_in / τ on a negative. An easy positive, of p above 1/|P_i|, is pushed away.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = SupConLoss(temperature=0.5)(x, torch.tensor([0, 0, 1]))  # one positive each: as NTXentLoss
    >>> round(loss.item(), 4)
    0.6895
    """

    over_parts = True

    def __init__(
        self, temperature: float = 0.1, base_temperature: float | None = None, reduction: Reduction = "paired"
    ) -> None:
        super().__init__()
        if temperature <= 0 or (base_temperature is not None and base_temperature <= 0):
            raise InputError(
                "`temperature` and `base_temperature` of SupConLoss must be above 0; got "
                f"{temperature} and {base_temperature}."
            )
        check_choice("SupConLoss", "reduction", reduction, Reduction)
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.reduction = reduction

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        scale = 1 / self.temperature
        count = pairs.positive_count
        paired = count > 0
        # Two empty sums would have a gradient of NaN; where one is empty the anchor is paired or out.
        positives = torch.where(paired, pairs.positives.logsumexp(scale), 0)
        total = torch.logaddexp(positives, pairs.negatives.logsumexp(scale))
        mean = scale * pairs.positives.weighted_sum(torch.ones_like) / count.clamp_min(1)
        per_anchor = torch.where(paired, total - mean, 0)
        if self.base_temperature is not None:
            per_anchor = per_anchor * (self.temperature / self.base_temperature)
        if self.reduction == "anchors":
            return per_anchor.sum() / max(len(per_anchor), 1)
        return per_anchor.sum() / paired.sum().clamp_min(1)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, base_temperature={self.base_temperature}, "
            f"reduction={self.reduction!r}"
        )

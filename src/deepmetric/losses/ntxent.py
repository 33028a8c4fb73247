"""Normalised temperature-scaled cross entropy, also InfoNCE (van den Oord et al. 2018, Chen et al. 2020)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison


class NTXentLoss(PairLoss):
    r"""Each positive must be told from all negatives of its anchor, by a softmax.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4; Chen et
    al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1. Rows are
    L2-normalised, S is the cosine. A positive pair (i, p) costs

        l_ip = -log( exp(S_ip / τ) / (exp(S_ip / τ) + Σ_n exp(S_in / τ)) )

    and the loss is the mean over all pairs of an anchor and a positive. Other positives of the anchor are not
    in the denominator; where they are to be, take :class:`SupConLoss`. With two views an image, the image's
    number as label, this is SimCLR's loss.

    Args:
        temperature: τ, above 0. 0.07 is CPC's successors' usual choice, SimCLR has 0.1 to 0.5.

    An anchor without positives has no term; without negatives its terms are 0. Without any pair the loss is 0
    with zero gradient. Range [0, ∞).

    GPW weight (before the divisor), of each positive pair: (1 - p) / τ on the positive and
    exp(S_in / τ) / (exp(S_ip / τ) + Σ_n exp(S_in / τ)) / τ on a negative, p = exp(-l_ip).

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = NTXentLoss(temperature=0.5)(x, torch.tensor([0, 0, 1]))  # cosines 0.8; 0.6 and 0.96
    >>> round(loss.item(), 4)  # (log(1 + exp(-0.4)) + log(1 + exp(0.32))) / 2
    0.6895
    """

    over_parts = True

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"`temperature` of NTXentLoss must be above 0; got {temperature}.")
        self.temperature = temperature

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        scale = 1 / self.temperature
        costs = pairs.positives.sum(
            lambda similarity, others: softplus(others - scale * similarity, threshold=40.0),
            pairs.negatives.logsumexp(scale),
        )
        return costs.sum() / pairs.positive_count.sum().clamp_min(1)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"

"""Regularisers of embeddings, to stand beside a loss in a :class:`~deepmetric.losses.WeightedSum`."""

from __future__ import annotations

import torch
from torch import Tensor

from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison


class IntraClassVarianceLoss(PairLoss):
    r"""The variance within classes: how far items of a class lie from their mean.

    Rows are L2-normalised, S is the cosine. An anchor with positives P costs

        1/|P| Σ_P (1 - S) = ½ 1/|P| Σ_P D²

    whose mean over the m items of a class is Σ‖x_i - mean‖² / (m - 1), its unbiased variance summed over coordinates.
    The loss is the mean over anchors with a positive; without any it is 0 with zero gradient. Range [0, 2]. Alone it
    draws everything into one point.

    GPW weight: 1/|P| on a positive, 0 on a negative.

    >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> round(IntraClassVarianceLoss()(x, torch.tensor([0, 0, 1])).item(), 4)
    0.4
    """

    over_parts = True

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        count = pairs.positive_count
        similar = pairs.positives.sum(lambda s: s) / count.clamp_min(1)
        answered = count > 0
        return torch.where(answered, 1 - similar, 0).sum() / answered.sum().clamp_min(1)


class GlobalOrthogonalLoss(PairLoss):
    r"""Items of different classes as orthogonal as random directions are: the space is used evenly.

    Zhang, Yu, Kumar, Chang, "Learning Spread-out Local Feature Descriptors", ICCV 2017, eq. 6 (global orthogonal
    regularisation). Rows are L2-normalised, of width d; over all negative pairs

        L = (mean of S)² + [mean of S² - 1/d]₊

    for independent uniform directions both parts are 0. Without a negative pair 0 with zero gradient. Range [0, 2).

    GPW weight, with n negative pairs: 2/n (mean of S) + 2S/n where the second part is active.

    >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> round(GlobalOrthogonalLoss()(x, torch.tensor([0, 1])).item(), 4)  # 0.6², and 0.36 is below 1/2
    0.36
    """

    over_parts = True

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        count = pairs.negative_count.sum().clamp_min(1)
        mean = pairs.negative_sum().sum() / count
        square = pairs.negatives.sum(torch.square).sum() / count
        return mean.square() + (square - 1 / batch.anchors.shape[1]).clamp_min(0)

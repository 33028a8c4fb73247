"""Intra-pair variance loss (Yu, Tao 2019)."""

from __future__ import annotations

from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison


class IntraPairVarianceLoss(PairLoss):
    r"""Positive pairs below their mean similarity, and negative pairs above theirs, are drawn to the mean.

    Yu, Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019, eq. 12 and 13; meant as an addition to
    :class:`TupletMarginLoss` or another loss, it separates nothing by itself. Rows are L2-normalised, S is the
    cosine, μ₊ and μ₋ the means of S over all positive and all negative pairs, which take gradients too:

        L = mean over positive pairs of [(1 - ε₊) μ₊ - S]₊²  +  mean over negative pairs of [S - (1 + ε₋) μ₋]₊²

    Args:
        pos_eps: ε₊, at least 0.
        neg_eps: ε₋, at least 0.

    A half without pairs is 0; without any pair the loss is 0 with zero gradient. Range [0, ∞).

    GPW weight, with r the hinge and n the number of pairs of the half: 2/n (r - (1 - ε₊) mean r) on a positive,
    2/n (r - (1 + ε₋) mean r) on a negative; below 0 where r is below the mean.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = IntraPairVarianceLoss(0.0, 0.0)(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # negatives of 0.6 and 0.96, mean 0.78: 0.18² on every second pair
    0.0162
    """

    over_parts = True

    def __init__(self, pos_eps: float = 0.01, neg_eps: float = 0.01) -> None:
        super().__init__()
        if pos_eps < 0 or neg_eps < 0:
            raise InputError(
                f"`pos_eps` and `neg_eps` of IntraPairVarianceLoss must be at least 0; got {pos_eps} and "
                f"{neg_eps}."
            )
        self.pos_eps = pos_eps
        self.neg_eps = neg_eps

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        n = len(batch.anchors)
        positive, negative = pairs.positive_count.sum().clamp_min(1), pairs.negative_count.sum().clamp_min(1)
        least = (1 - self.pos_eps) * pairs.positives.sum(lambda s: s).sum() / positive
        most = (1 + self.neg_eps) * pairs.negative_sum().sum() / negative
        below, _ = pairs.positives.hinge_sum(least.expand(n), above=False, squared=True)
        above, _ = pairs.negatives.hinge_sum(most.expand(n), above=True, squared=True)
        return below.sum() / positive + above.sum() / negative

    def extra_repr(self) -> str:
        return f"pos_eps={self.pos_eps}, neg_eps={self.neg_eps}"

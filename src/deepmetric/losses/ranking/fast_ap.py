"""FastAP loss (Cakir et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.ranking.bins import soft_histogram
from deepmetric.losses.ranking.ranked import Block, Ranked


class FastAPLoss(PairLoss):
    r"""One minus average precision, ranks counted in a histogram of distances.

    Cakir, He, Xia, Kulis, Sclaroff, "Deep Metric Learning to Rank", CVPR 2019, eq. 6 and 7. Rows are
    L2-normalised. Squared distances, in [0, 4], are shared between the two nearest of num_bins + 1 nodes; with
    h⁺_k and h_k the number of a query's positives and of all its items at node k, H⁺_k and H_k cumulated,

        AP = 1/|P| Σ_k h⁺_k H⁺_k / H_k

    and the loss is the mean of 1 - AP over queries with a positive; without any it is 0 with zero gradient.
    Range [0, 1]. Wants large batches; the paper draws each from two super-classes.

    Args:
        num_bins: bins over [0, 4], at least 1.
        count_query: the query itself, where it is among the references, is one of its positives: the SoftBin AP of
            Revaud et al. 2019 and He et al. 2018 (which has num_bins + 1 for its "number of nodes").

    GPW weight: the pair's share of dL/dh at its two nodes, their difference divided by the width of a bin, times 2.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-0.6, 0.8]])
    >>> FastAPLoss(num_bins=4)(x, torch.tensor([0, 0, 1])).item() < 0.2
    True
    """

    def __init__(self, num_bins: int = 10, count_query: bool = False) -> None:
        super().__init__()
        if num_bins < 1:
            raise InputError(f"`num_bins` of FastAPLoss must be at least 1; got {num_bins}.")
        self.num_bins = num_bins
        self.count_query = count_query

    def of_batch(self, batch: Batch) -> Tensor:
        ranked = Ranked(batch, count_query=self.count_query)

        def precision(block: Block) -> Tensor:
            place = (1 - block.similarity) * (self.num_bins / 2)  # of D² = 2 - 2S in bins of 4 / num_bins
            positive = soft_histogram(place, block.positive, self.num_bins + 1)
            total = positive + soft_histogram(place, block.negative, self.num_bins + 1)
            found, seen = positive.cumsum(1), total.cumsum(1)
            seen = seen.masked_fill(seen <= 0, 1)
            return (positive * found / seen).sum(1) / block.positive.sum(1).clamp_min(1)

        return ranked.mean(1 - ranked.per_query(precision, compares=False), ranked.positives > 0)

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}, count_query={self.count_query}"

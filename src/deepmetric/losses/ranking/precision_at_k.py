"""Precision@k surrogate loss, as open-metric-learning has it."""

from __future__ import annotations

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.ranking.ranked import Block, Ranked


class PrecisionAtKLoss(PairLoss):
    r"""One minus precision at k, with the logistic functions of :class:`RecallAtKLoss`, on Euclidean distances.

    The ``SurrogatePrecision`` of open-metric-learning, kept for those who come from there. Rows are taken as they
    are. The query itself counts as one of its positives P, and k is one more where it is among the references:

        r_p = Σ_j σ((D_p - D_j)/τ2),   j over all references, p too
        P@k = Σ_{p in P} σ((k - r_p)/τ1) / min(k, |P|)

    The loss is the mean of 1 - P@k over queries with a positive in this sense; without any it is 0 with zero
    gradient. Not clipped: below 0 where many positives are just beyond the k nearest.

    Args:
        k: at least 1.
        precision_temperature: τ1, above 0.
        rank_temperature: τ2, above 0, in units of distance.
        normalize: L2-normalise rows first.
    """

    def __init__(
        self,
        k: int = 5,
        precision_temperature: float = 1.0,
        rank_temperature: float = 0.01,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"`k` of PrecisionAtKLoss must be at least 1; got {k}.")
        if min(precision_temperature, rank_temperature) <= 0:
            raise InputError(
                "`precision_temperature` and `rank_temperature` of PrecisionAtKLoss must be above 0; got "
                f"{precision_temperature} and {rank_temperature}."
            )
        self.k = k
        self.precision_temperature = precision_temperature
        self.rank_temperature = rank_temperature
        self.normalize = normalize

    def of_batch(self, batch: Batch) -> Tensor:
        ranked = Ranked(batch, count_query=True, kind="distance", normalize=self.normalize)
        k = self.k + ranked.has_own

        def precision(block: Block) -> Tensor:
            query, gap = block.gaps()
            before = torch.sigmoid(gap / self.rank_temperature)
            rank = block.over_positives(query, before) + block.over_negatives(query, before)
            within = torch.sigmoid((k[block.rows][query] - rank) / self.precision_temperature)
            return block.per_query(query, within)

        found = ranked.per_query(precision) / torch.minimum(k, ranked.positives).clamp_min(1)
        return ranked.mean(1 - found, ranked.positives > 0)

    def extra_repr(self) -> str:
        return (
            f"k={self.k}, precision_temperature={self.precision_temperature}, "
            f"rank_temperature={self.rank_temperature}, normalize={self.normalize}"
        )

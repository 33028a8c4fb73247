"""Recall@k surrogate loss (Patel et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.ranking.ranked import Block, Ranked
from deepmetric.losses.ranking.simix import similarity_mixup
from deepmetric.losses.streamed.rows import unit_rows


class RecallAtKLoss(PairLoss):
    r"""One minus recall at k, rank and "within the first k" both replaced by logistic functions.

    Patel, Tolias, Matas, "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022, eq. 7. Rows
    are L2-normalised, s_j is the cosine of the query with item j, σ the logistic function:

        r_p = 1 + Σ_{j≠p} σ((s_j - s_p)/τ2)
        R@k = min(k, Σ_{p in P} σ((k - r_p)/τ1)) / min(k, |P|)

    The loss is the mean of 1 - R@k over the k and over queries with a positive; without any it is 0 with zero
    gradient. Range [0, 1]. In blocks of queries, as :class:`SmoothAPLoss`: a batch of 4,000 does not need
    4,000² comparisons for each positive at once.

    Args:
        ks: at which k, each at least 1. One beyond the number of references counts as that number.
        recall_temperature: τ1, above 0: one, or one for each k.
        rank_temperature: τ2, above 0.
        simix: join virtual items to the batch in training mode (:func:`similarity_mixup`); for a batch that is its
            own reference set.
        count_query: the query itself, where it is among the references, stands in its own ranking (never as a
            positive), as in the authors' code: every rank is about one too high. The paper leaves it out.

    GPW weight, with u_p = σ'((k - r_p)/τ1)/τ1/min(k, |P|) averaged over k: Σ_p u_p σ'((s_j - s_p)/τ2)/τ2 on a
    negative j.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = RecallAtKLoss([1], recall_temperature=0.01)(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # rank 1, of which σ(0) = 0.5 is within the first 1, and rank 2
    0.75
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8, 16),
        recall_temperature: float | Sequence[float] = 1.0,
        rank_temperature: float = 0.01,
        simix: bool = False,
        count_query: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(ks, Sequence) or not ks or min(ks) < 1:
            raise InputError(
                f"`ks` of RecallAtKLoss must be a list of one or more integers from 1; got {ks!r}."
            )
        each = (
            list(recall_temperature)
            if isinstance(recall_temperature, Sequence)
            else [recall_temperature] * len(ks)
        )
        if len(each) != len(ks):
            raise InputError(
                f"`recall_temperature` of RecallAtKLoss must be one number, or one for each of the {len(ks)} `ks`; "
                f"got {len(each)}."
            )
        if min(*each, rank_temperature) <= 0:
            raise InputError(
                f"temperatures of RecallAtKLoss must be above 0; got {each} and {rank_temperature}."
            )
        self.ks = list(ks)
        self.recall_temperature = each
        self.rank_temperature = rank_temperature
        self.simix = simix
        self.count_query = count_query

    def of_batch(self, batch: Batch) -> Tensor:
        mixes = self.simix and self.training
        if mixes:
            batch = self._mixed(batch)
        ranked = Ranked(batch, normalize=not mixes)
        options = {"dtype": ranked.anchors.dtype, "device": ranked.anchors.device}
        k = torch.tensor(self.ks, **options).clamp_max(max(len(ranked.refs), 1))
        temperature = torch.tensor(self.recall_temperature, **options)

        def recall(block: Block) -> Tensor:
            query, gap = block.gaps()
            before = torch.sigmoid(gap / self.rank_temperature)
            rank = 0.5 + block.over_positives(query, before) + block.over_negatives(query, before)
            if self.count_query and ranked.own is not None:
                own = ranked.own[block.rows][query]
                at_own = before.gather(1, own.clamp_min(0)[:, None])[:, 0]
                rank = rank + torch.where(own >= 0, at_own, 0)
            return block.per_query(query, torch.sigmoid((k - rank[:, None]) / temperature))

        most = torch.minimum(k, ranked.positives[:, None]).clamp_min(1)
        # σ < 1, so that the sum is below |P| as it is.
        found = torch.minimum(ranked.per_query(recall), k) / most
        return ranked.mean(1 - found.mean(1), ranked.positives > 0)

    def _mixed(self, batch: Batch) -> Batch:
        if batch.refs is not batch.anchors or batch.own is None:
            raise InputError(
                "RecallAtKLoss(simix=True) mixes items of one batch; it was given `ref_emb`. Leave that out (no "
                "memory), or set simix=False."
            )
        rows, labels = similarity_mixup(unit_rows(batch.anchors), batch.labels, self.processes)
        return Batch(rows, labels, rows, labels, torch.arange(len(rows), device=rows.device))

    def extra_repr(self) -> str:
        return (
            f"ks={self.ks}, recall_temperature={self.recall_temperature}, rank_temperature={self.rank_temperature}, "
            f"simix={self.simix}, count_query={self.count_query}"
        )

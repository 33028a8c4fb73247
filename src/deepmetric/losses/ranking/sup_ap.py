"""SupAP loss and ROADMAP (Ramzi et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.contrastive import ContrastiveLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.ranking.ranked import Block, Ranked


class SupAPLoss(PairLoss):
    r"""An upper bound of one minus average precision, whose gradient does not vanish on far negatives.

    Ramzi, Thome, Rambour, Audebert, Bitot, "Robust and Decomposable Average Precision for Image Retrieval", NeurIPS
    2021, eq. 4 to 6. Rows are L2-normalised, s_j is the cosine of the query with item j, σ the logistic function.
    With r⁺_i the true rank of positive i among the positives (no gradient),

        AP = 1/|P| Σ_{i in P} r⁺_i / (r⁺_i + Σ_{n in N} H(s_n - s_i))

        H(z) = σ(z/τ)                 z ≤ 0
               start + σ(z/τ)         0 < z ≤ δ
               ρ (z - δ) + offset     z > δ

    and the loss is the mean of 1 - AP over queries with a positive; without any it is 0 with zero gradient.
    Range [0, 1]. Computed in blocks of queries, as :class:`SmoothAPLoss`. Similarities that differ by no more than
    rounding are ties.

    Args:
        temperature: τ, above 0.
        slope: ρ, at least 0.
        delta: δ, above 0.
        offset: H just beyond δ: 1.44 in the authors' configuration; None is the value σ(δ/τ) + start at which H is
            continuous.
        start: the jump of H at 0; 0.5 makes it an upper bound.
        count_query: the query itself, where it is among the references, is one of its positives, as in the
            authors' code; the paper leaves it out.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        slope: float = 100.0,
        delta: float = 0.05,
        offset: float | None = 1.44,
        start: float = 0.5,
        count_query: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0 or delta <= 0:
            raise InputError(
                f"`temperature` and `delta` of SupAPLoss must be above 0; got {temperature} and {delta}."
            )
        if slope < 0:
            raise InputError(f"`slope` of SupAPLoss must be at least 0; got {slope}.")
        self.temperature = temperature
        self.slope = slope
        self.delta = delta
        self.offset = 1 / (1 + math.exp(-delta / temperature)) + start if offset is None else offset
        self.start = start
        self.count_query = count_query

    def of_batch(self, batch: Batch) -> Tensor:
        ranked = Ranked(batch, count_query=self.count_query)
        tie = ranked.tolerance

        def precision(block: Block) -> Tensor:
            query, gap = block.gaps()
            before = (gap.detach() >= -tie).to(gap.dtype)
            rank_of_positives = block.over_positives(query, before)  # itself is one of them
            negatives_before = block.over_negatives(query, self._step(gap, tie))
            ratio = rank_of_positives / (rank_of_positives + negatives_before)
            return block.per_query(query, ratio)

        found = ranked.per_query(precision) / ranked.positives.clamp_min(1)
        return ranked.mean(1 - found, ranked.positives > 0)

    def _step(self, gap: Tensor, tie: float) -> Tensor:
        near = torch.sigmoid(gap / self.temperature) + self.start * (gap > tie)
        return torch.where(gap > self.delta, self.slope * (gap - self.delta) + self.offset, near)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, slope={self.slope}, delta={self.delta}, offset={self.offset}, "
            f"start={self.start}, count_query={self.count_query}"
        )


class ROADMAPLoss(PairLoss):
    r"""SupAP, which orders the items of one query, and a contrastive loss that makes queries comparable.

    Ramzi et al. 2021, eq. 9, in the form of the authors' code::

        L = SupAP + calibration_weight · ( mean of [α - s_p]₊ + mean of [s_n - β]₊ )

    both means over the pairs that are not 0. The paper writes (1 - λ) SupAP + λ calibration with λ = 0.5, which
    is half of it.

    Args:
        sup_ap: the settings of :class:`SupAPLoss` that differ from its defaults.
        positive_margin: α.
        negative_margin: β.
        calibration_weight: at least 0; the paper's λ / (1 - λ).
    """

    def __init__(
        self,
        sup_ap: dict[str, float | bool | None] | None = None,
        positive_margin: float = 0.9,
        negative_margin: float = 0.6,
        calibration_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if calibration_weight < 0:
            raise InputError(
                f"`calibration_weight` of ROADMAPLoss must be at least 0; got {calibration_weight}."
            )
        self.sup_ap = SupAPLoss(**(sup_ap or {}))  # type: ignore[arg-type]
        self.calibration = ContrastiveLoss(
            "cosine_hinge", positive_margin, negative_margin, reduction="nonzero"
        )
        self.calibration_weight = calibration_weight

    def of_batch(self, batch: Batch) -> Tensor:
        return self.sup_ap.of_batch(batch) + self.calibration_weight * self.calibration.of_batch(batch)

    def extra_repr(self) -> str:
        return f"calibration_weight={self.calibration_weight}"

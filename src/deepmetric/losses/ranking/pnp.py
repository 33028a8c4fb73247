"""PNP loss (Li et al. 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.ranking.ranked import Block, Ranked

Variant = Literal["O", "Iu", "Ib", "Ds", "Dq"]


class PNPLoss(PairLoss):
    r"""Penalises the negatives before positives: the order among positives, which AP rewards too, is left alone.

    Li, Min, Ye et al., "Rethinking the Optimization of Average Precision: Only Penalizing Negative Instances before
    Positive Ones is Enough", AAAI 2022. Rows are L2-normalised. The soft number of negatives before positive i is

        R_i = Σ_{n in N} σ((s_n - s_i)/τ)

    and a positive costs f(R_i):

    ========  ==========================  =====================================================
    variant   f(R)                        slope with growing R
    ========  ==========================  =====================================================
    O         R                           constant
    Iu        (1 + R) log(1 + R)          increasing, unbounded
    Ib        (b R - log(1 + b R)) / b²   increasing, bounded
    Ds        log(1 + R)                  decreasing, slowly
    Dq        1 - (1 + R)^-α              decreasing, quickly (the paper's best, with α 4)
    ========  ==========================  =====================================================

    The loss is the mean over queries that have a positive beside themselves of the mean over their positives; without
    any it is 0 with zero gradient. Range [0, 1] for Dq, else [0, ∞). In blocks of queries, as
    :class:`SmoothAPLoss`.

    Args:
        variant: f.
        temperature: τ, above 0.
        alpha: α of Dq, above 0.
        b: of Ib, above 0.
        count_query: the query itself, where it is among the references, is one of its positives, as in the
            authors' code and in PML; it is seldom behind a negative and mostly divides the loss.

    GPW weight (before the means), with g(z) = σ(z/τ): f'(R_i) Σ_n g'(s_n - s_i) on positive i, and
    Σ_i f'(R_i) g'(s_n - s_i) on negative n.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = PNPLoss("O")(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # the second item has one negative before its positive
    0.5
    """

    def __init__(
        self,
        variant: Variant = "Dq",
        temperature: float = 0.01,
        alpha: float = 4.0,
        b: float = 2.0,
        count_query: bool = False,
    ) -> None:
        super().__init__()
        check_choice("PNPLoss", "variant", variant, Variant)
        if min(temperature, alpha, b) <= 0:
            raise InputError(
                f"`temperature`, `alpha` and `b` of PNPLoss must be above 0; got {temperature}, {alpha} and {b}."
            )
        self.variant = variant
        self.temperature = temperature
        self.alpha = alpha
        self.b = b
        self.count_query = count_query

    def of_batch(self, batch: Batch) -> Tensor:
        ranked = Ranked(batch, count_query=self.count_query)

        def cost(block: Block) -> Tensor:
            query, gap = block.gaps()
            before = block.over_negatives(query, torch.sigmoid(gap / self.temperature))
            return block.per_query(query, self._penalty(before))

        return ranked.mean(ranked.per_query(cost) / ranked.positives.clamp_min(1), ranked.others > 0)

    def _penalty(self, before: Tensor) -> Tensor:
        if self.variant == "O":
            return before
        if self.variant == "Iu":
            return (1 + before) * before.log1p()
        if self.variant == "Ib":
            return (self.b * before - (self.b * before).log1p()) / self.b**2
        if self.variant == "Ds":
            return before.log1p()
        return 1 - (1 + before) ** -self.alpha

    def extra_repr(self) -> str:
        return (
            f"variant={self.variant!r}, temperature={self.temperature}, alpha={self.alpha}, b={self.b}, "
            f"count_query={self.count_query}"
        )

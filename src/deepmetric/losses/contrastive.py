"""Contrastive loss (Hadsell, Chopra, LeCun 2006) in its cosine and distance forms."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from deepmetric.errors import check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.metric import Kind

Form = Literal["cosine", "cosine_hinge", "distance", "squared_distance", "hadsell"]
Reduction = Literal["anchors", "nonzero", "mean"]

_KINDS: dict[str, Kind] = {
    "cosine": "dot",
    "cosine_hinge": "dot",
    "distance": "distance",
    "squared_distance": "squared",
    "hadsell": "distance",
}


class ContrastiveLoss(PairLoss):
    r"""Pull positives together, push negatives apart until a margin.

    Rows are L2-normalised; S is the cosine, D the Euclidean distance of unit rows (D² = 2 - 2S), m₊ and m₋
    the margins, [z]₊ = max(0, z). A pair costs

    ==================  ================  ===================  =======  ====  =============================
    form                positive          negative             m₊       m₋    source
    ==================  ================  ===================  =======  ====  =============================
    cosine              [m₊ - S]₊         S where S > m₋       1        0.5   code of the XBM authors (2020)
    cosine_hinge        [m₊ - S]₊         [S - m₋]₊            1        0.5   Wang et al. 2019 (GPW)
    distance            [D - m₊]₊         [m₋ - D]₊            0        1     linear hinge, as PML has it
    squared_distance    [D² - m₊]₊        [m₋ - D²]₊           0        1     Caffe, HDC
    hadsell             ½[D - m₊]₊²       ½[m₋ - D]₊²          0        1     Hadsell et al. 2006, eq. 4
    ==================  ================  ===================  =======  ====  =============================

    "cosine" and "cosine_hinge" have the same gradient; the value of the first jumps by m₋ where a negative
    crosses the margin.

    Args:
        form: see the table.
        positive_margin: m₊; None takes the table's.
        negative_margin: m₋; None takes the table's.
        reduction: "anchors" sums all pairs and divides by the number of anchors, so that it grows with the
            size of a memory, as the XBM authors have it; "nonzero" averages the positives' and the negatives'
            costs apart, each over its strictly positive entries, and adds the two; "mean" averages each over
            all of its pairs.

    GPW weight (before the divisor): cosine forms 1 and 1[S > m₋]; distance 1/D and 1[D < m₋]/D;
    squared_distance 2 and 2·1[D² < m₋]; hadsell 1 and [m₋ - D]₊/D.

    Range [0, ∞) (cosine forms with m₋ < 0 reach below 0). Anchors without positives pay for their negatives
    only and the reverse; without any pair the loss is 0 with zero gradient. At D = 0 the derivative is 0.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> round(ContrastiveLoss()(x, torch.tensor([0, 0, 1])).item(), 4)  # (2·0.2 + 2·0.6 + 2·0.96) / 3
    1.1733
    """

    over_parts = True

    def __init__(
        self,
        form: Form = "cosine",
        positive_margin: float | None = None,
        negative_margin: float | None = None,
        reduction: Reduction = "anchors",
    ) -> None:
        super().__init__()
        check_choice("ContrastiveLoss", "form", form, Form)
        check_choice("ContrastiveLoss", "reduction", reduction, Reduction)
        by_cosine = form.startswith("cosine")
        self.form = form
        self.positive_margin = (1.0 if by_cosine else 0.0) if positive_margin is None else positive_margin
        self.negative_margin = (0.5 if by_cosine else 1.0) if negative_margin is None else negative_margin
        self.reduction = reduction

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch, kind=_KINDS[self.form])
        low, high = self.positive_margin, self.negative_margin
        by_cosine, squared = pairs.kind == "dot", self.form == "hadsell"
        positive, positives_paying = pairs.positives.hinge_sum(low, above=not by_cosine, squared=squared)
        negative, negatives_paying = pairs.negatives.hinge_sum(high, above=by_cosine, squared=squared)
        if self.form == "cosine":
            negative = negative + high * negatives_paying
            if high < 0 and self.reduction == "nonzero":
                _, negatives_paying = pairs.negatives.hinge_sum(0.0, above=True)
        if squared:
            positive, negative = positive / 2, negative / 2
        if self.reduction == "anchors":
            return (positive + negative).sum() / max(len(batch.anchors), 1)
        if self.reduction == "mean":
            positives_paying, negatives_paying = pairs.positive_count, pairs.negative_count
        return positive.sum() / positives_paying.sum().clamp_min(
            1
        ) + negative.sum() / negatives_paying.sum().clamp_min(1)

    def extra_repr(self) -> str:
        return (
            f"form={self.form!r}, positive_margin={self.positive_margin}, "
            f"negative_margin={self.negative_margin}, reduction={self.reduction!r}"
        )

"""Angular loss (Wang et al. 2017)."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.products import triangle_softplus
from deepmetric.losses.streamed.rows import unit_rows


class AngularLoss(PairLoss):
    r"""The angle at a negative, of the triangle that it forms with a positive pair, must be small.

    Wang, Zhou, Wen, Liu, Lin, "Deep Metric Learning with Angular Loss", ICCV 2017, eq. 7 and 8. Rows are
    L2-normalised, the negatives too; a, p, n are the unit rows of anchor, positive and negative. A positive pair
    costs

        l_ap = log( 1 + Σ_n exp( 4 tan²α (a + p)·n - 2 (1 + tan²α) a·p ) )

    and the loss is the mean over all pairs of an anchor and a positive. The paper combines it with
    :class:`NPairsLoss`.

    Args:
        alpha: α in degrees, above 0 and below 90; the paper has 36 to 55.

    An anchor without positives has no term; without negatives its terms are 0. Without any pair the loss is 0
    with zero gradient. Range [0, ∞). Every positive pair has a sum of its own over the references: time grows with
    the number of distinct positives beside the anchors (streamed/products.py), and where α is above 69.9 degrees (82.8
    in float64) or the batch is small with the number of pairs.

    GPW weight (before the divisor), of each positive pair, with π_n = e_n / (1 + Σe): 2 (1 + tan²α) Σπ on a·p,
    4 tan²α π_n on a·n and on p·n.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = AngularLoss(alpha=45.0)(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # log(1 + exp(4 · (0.6 + 0.96) - 4 · 0.8))
    3.0867
    """

    over_parts = True

    def __init__(self, alpha: float = 45.0) -> None:
        super().__init__()
        if not 0 < alpha < 90:
            raise InputError(f"`alpha` of AngularLoss is an angle above 0 and below 90 degrees; got {alpha}.")
        self.alpha = alpha

    def of_batch(self, batch: Batch) -> Tensor:
        tangent = math.tan(math.radians(self.alpha)) ** 2
        pairs = Comparison(*batch)
        scale, threshold = 4 * tangent, 2 * (1 + tangent) * pairs.positive_list.values
        if pairs.small or not pairs.metric(2 * scale).in_range(pairs.anchors.dtype):
            total, number = _pair_by_pair(batch, pairs, scale, threshold)
        else:
            total, number = triangle_softplus(pairs, scale, threshold)
        return total / max(number, 1)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _pair_by_pair(batch: Batch, pairs: Comparison, scale: float, threshold: Tensor) -> tuple[Tensor, int]:
    """:func:`triangle_softplus` with each pair as an anchor of its own: for a small problem, and for angles whose
    exponents need a maximum taken off."""
    positives = pairs.positive_list
    positive = pairs.refs[positives.ref].to(pairs.anchors.dtype)
    if pairs.normalize_refs:
        positive = unit_rows(positive)
    anchor, threshold, centre = (
        positives.everywhere(part)
        for part in (positives.anchor, threshold, scale * (pairs.anchors[positives.anchor] + positive))
    )
    centres = Comparison(
        centre,
        batch.labels[anchor],
        pairs.refs,
        batch.ref_labels,
        batch.own[anchor] if batch.own is not None else None,
        batch.processes,
        normalize=False,
    )
    # The centres keep their length, the references are brought to unit length tile by tile.
    centres.normalize_refs = pairs.normalize_refs
    costs = softplus(centres.negatives.logsumexp(1.0) - threshold, threshold=40.0)
    return costs.sum(), len(costs)

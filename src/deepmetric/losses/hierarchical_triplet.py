"""Hierarchical triplet loss (Ge et al. 2018)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.class_tree import ClassTree
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

Reduction = Literal["mean", "nonzero"]

BLOCK = 2**22  # triplets looked at together


class HierarchicalTripletLoss(PairLoss):
    r"""Triplets with a margin that a tree of classes gives to each pair of classes.

    Ge, Huang, Dong, Scott, "Deep Metric Learning with Hierarchical Triplet Loss", ECCV 2018:

        L = 1/(2 Z) Σ_(a,p,n) [ D²_ap - D²_an + α(y_a, y_n) ]_+      α(y, y') = β + d_H(y,y') - s_y

    over all Z triplets of the batch. H(y, y') is the level of the tree at which the two classes merge, d_H its
    threshold, and s_y the mean squared distance within the anchor's class: classes that are far apart must
    stay so, classes that are near must part by a little more than they do. The tree is constant: no gradient goes
    through α. Rows are L2-normalised.

    The published text leaves open, or contradicts itself on:

    - whether D is squared. The thresholds are squared distances (up to 4), the loss is printed with distances; here
      all three are squared, the one reading in which they can be added.
    - a negative α, where a class is looser than d_H + β: kept, or 0 with ``clip_margin``.
    - which triplets the mean is over: all of them, as the formula for Z says, or with "nonzero" those that cost
      something, as in most triplet losses.

    Args:
        beta: β, the least margin between classes that merge at their own spread.
        clip_margin: no margin below 0.
        reduction: "mean" or "nonzero", as above.

    Attributes:
        tree: the :class:`ClassTree`; :class:`deepmetric.training.HTL` sets and saves it. It must be set before the
            first call, and is no part of ``state_dict()``.

    An anchor without positives or negatives forms no triplet. No triplet: loss 0 with zero gradient. Range [0, ∞).
    Memory is that of a few N x M matrices.

    GPW weight (before the divisor 2 Z): 2 · the number of active triplets that the pair is in.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = HierarchicalTripletLoss(beta=0.1)
    >>> loss.tree = ClassTree(  # two classes of spread 0.4 and 0, which merge at the threshold 0.9
    ...     torch.tensor([0, 1]),
    ...     torch.tensor([0.4, 0.0]),
    ...     torch.tensor([[0, 1], [0, 0]]),
    ...     torch.tensor([0.4, 0.9]),
    ... )
    >>> round(loss(x, torch.tensor([0, 0, 1])).item(), 4)  # ([0.4 - 0.8 + 0.6] + [0.4 - 0.08 + 0.6]) / (2 · 2)
    0.28
    """

    def __init__(self, beta: float = 0.1, clip_margin: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice("HierarchicalTripletLoss", "reduction", reduction, Reduction)
        self.beta, self.clip_margin = beta, clip_margin
        self.reduction: Reduction = reduction
        self.tree: ClassTree | None = None

    def of_batch(self, batch: Batch) -> Tensor:
        if self.tree is None:
            raise InputError(
                "HierarchicalTripletLoss has no tree yet: a recipe needs `procedure: {class_path: "
                "deepmetric.training.HTL}`, which builds it; a program sets `loss.tree = build_class_tree(...)`."
            )
        pairs = Comparison(*batch, kind="squared")
        squared, positive, negative = pairs.matrix  # [N, M] each
        with torch.no_grad():
            margins = self._margins(batch).to(squared.dtype)
            as_positive, as_negative, active = _counts(squared, positive, negative, margins)
        # Each hinge is linear where it is active: the counts of active triplets are the loss and its gradient.
        cost = (as_positive * squared).sum() - (as_negative * (squared - margins)).sum()
        if self.reduction == "nonzero":
            triplets = active
        else:
            triplets = (positive.sum(1) * negative.sum(1)).sum()
        return cost / (2 * triplets).clamp_min(1)

    def _margins(self, batch: Batch) -> Tensor:
        assert self.tree is not None
        margins = self.tree.margins(
            self.tree.positions(batch.labels), self.tree.positions(batch.ref_labels), self.beta
        )
        return margins.clamp_min(0) if self.clip_margin else margins

    def extra_repr(self) -> str:
        return f"beta={self.beta}, clip_margin={self.clip_margin}, reduction={self.reduction!r}"


def _counts(
    squared: Tensor, positive: Tensor, negative: Tensor, margins: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """In how many active triplets each pair [N, M] is, as a positive and as a negative pair, and how many there are."""
    n, m = squared.shape
    width = int(positive.sum(1).max()) if n else 0  # the most positives of an anchor
    as_positive, as_negative = torch.zeros_like(squared), torch.zeros_like(squared)
    if not width:
        return as_positive, as_negative, as_positive.sum()
    bar = torch.where(negative, squared - margins, torch.inf)  # a positive further than this costs
    places = positive.to(torch.uint8).topk(width, dim=1).indices  # [N, width], the positives first
    far = squared.gather(1, places).masked_fill_(~positive.gather(1, places), -torch.inf)
    step = max(1, BLOCK // (width * m))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        active = far[rows, :, None] > bar[rows, None, :]  # [step, width, M]
        as_positive[rows].scatter_(1, places[rows], active.sum(2).to(squared.dtype))
        as_negative[rows] = active.sum(1).to(squared.dtype)
    return as_positive, as_negative, as_positive.sum()

"""N-pairs loss (Sohn 2016)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

PairsTaken = Literal["first", "all"]


class NPairsLoss(PairLoss):
    r"""A positive must be nearer, by dot product, than all negatives at once.

    Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, eq. 6. A pair of an
    anchor a and a positive p costs, x being the rows as given,

        l_ap = log( 1 + Σ_n exp(x_a·x_n - x_a·x_p) )

    and the loss is the mean over pairs.

    Args:
        pairs: "first", the paper's, has one pair a class, of the first anchor with the label and the first
            reference with it (in a batch: the first two items of the class); the negatives are the positives of
            the other pairs. Other items are not used: sample two items a class. "all" has all pairs of an anchor
            and a positive, and all items of other classes as negatives.
        normalize: L2-normalise rows first. The paper does not.
        l2_weight: weight of the mean squared norm of the batch's rows, which the paper adds to keep norms small
            (TensorFlow has 0.0005).

    Anchors without positives have no term; without negatives a term is 0. Without any pair the loss is 0 with
    zero gradient (but for the norms' part). Range [0, ∞).

    GPW weight (before the divisor), of each pair, with e_n the exponentials: Σe / (1 + Σe) on the positive,
    e_n / (1 + Σe) on a negative.

    >>> x = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 2.0]])
    >>> round(NPairsLoss()(x, torch.tensor([0, 0, 1, 1])).item(), 4)  # both logits 2, and 2 against 1
    0.5032
    """

    over_parts = True

    def __init__(self, pairs: PairsTaken = "first", normalize: bool = False, l2_weight: float = 0.0) -> None:
        super().__init__()
        check_choice("NPairsLoss", "pairs", pairs, PairsTaken)
        if l2_weight < 0:
            raise InputError(f"`l2_weight` of NPairsLoss must be at least 0; got {l2_weight}.")
        self.pairs = pairs
        self.normalize = normalize
        self.l2_weight = l2_weight

    def of_batch(self, batch: Batch) -> Tensor:
        taken = first_pairs(batch) if self.pairs == "first" else batch
        pairs = Comparison(*taken, normalize=self.normalize)
        costs = pairs.positives.sum(
            lambda similarity, others: softplus(others - similarity, threshold=40.0),
            pairs.negatives.logsumexp(1.0),
        )
        loss = costs.sum() / pairs.positive_count.sum().clamp_min(1)
        if self.l2_weight and len(batch.anchors):
            loss = loss + self.l2_weight * batch.anchors.square().sum(1).mean()
        return loss

    def extra_repr(self) -> str:
        return f"pairs={self.pairs!r}, normalize={self.normalize}, l2_weight={self.l2_weight}"


def first_pairs(batch: Batch) -> Batch:
    """One anchor and one reference a class, the first of each that are not copies of each other; classes that
    lack either are left out."""
    if batch.processes is not None:
        # Of each process the first references of the classes, and of these the first.
        mine = first_pairs(batch._replace(processes=None))
        batch = mine._replace(
            anchors=batch.anchors, labels=batch.labels, processes=batch.processes
        ).gathered()
    n, m = len(batch.anchors), len(batch.refs)
    if not n or not m:
        return Batch(batch.anchors[:0], batch.labels[:0], batch.refs[:0], batch.ref_labels[:0], None)
    device = batch.labels.device
    classes, class_of = batch.labels.unique(return_inverse=True)
    anchor = torch.full_like(classes, n, dtype=torch.int64)
    anchor.scatter_reduce_(0, class_of, torch.arange(n, device=device), "amin")

    place = torch.searchsorted(classes, batch.ref_labels).clamp_max_(len(classes) - 1)
    position = torch.arange(m, device=device)
    usable = classes[place] == batch.ref_labels
    if batch.own is not None:
        usable = usable & (position != batch.own[anchor][place])
    positive = torch.full_like(anchor, m)
    positive.scatter_reduce_(0, place, torch.where(usable, position, m), "amin")

    paired = (positive < m).nonzero()[:, 0]
    classes, anchor, positive = classes[paired], anchor[paired], positive[paired]
    return Batch(batch.anchors[anchor], classes, batch.refs[positive], classes, None)

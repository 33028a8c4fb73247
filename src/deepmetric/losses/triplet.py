"""Triplet loss (Schroff, Kalenichenko, Philbin 2015) with its ways of choosing triplets."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError, did_you_mean
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.pairs import Pairs, cosine, pairs_of, root, squared_distances

Form = Literal["squared_distance", "distance", "cosine"]
Mining = Literal["all", "semihard", "semihard_band", "hard", "hard_band", "easy_positive"]
Reduction = Literal["nonzero", "mean"]
Singletons = Literal["skip", "push"]


class TripletLoss(PairLoss):
    r"""A positive must be nearer to its anchor than a negative, by a margin.

    Schroff et al., "FaceNet", CVPR 2015, eq. 3. With a distance D, the cost of a triplet of anchor, positive
    and negative is ``[D_ap - D_an + margin]₊``, or ``log(1 + exp(D_ap - D_an + margin))`` with
    ``soft_margin``.

    Args:
        margin: the wanted gap, in the units of ``form`` (0.2 on squared distances is 0.1 on cosines).
        mining: which triplets count.

            - "all": every triplet.
            - "semihard": for each positive pair the nearest negative further than the positive, else the
              furthest negative (FaceNet, as in TensorFlow's code).
            - "semihard_band": every triplet with 0 < D_an - D_ap <= margin (the semi-hard of PML).
            - "hard": for each anchor its furthest positive and nearest negative (Hermans et al. 2017, batch
              hard).
            - "hard_band": every triplet with D_an <= D_ap (the hard of PML).
            - "easy_positive": for each anchor its nearest positive and the nearest negative further than
              that; anchors without such a negative are left out (Xuan et al. 2020).

        form: D is the "squared_distance", the "distance", or "cosine", the negated cosine similarity.
        soft_margin: softplus instead of the hinge.
        reduction: "nonzero" averages the strictly positive costs, so that satisfied triplets do not dilute
            the gradient; "mean" averages all chosen triplets.
        swap: D_an becomes min(D_an, D_pn) once the triplets are chosen (Balntas et al. 2016, anchor swap).
        singletons: what an anchor without a positive does. "skip": nothing. "push": it is its own positive at
            distance 0, and so still pushes negatives away (the code of Hermans et al.).
        normalize: L2-normalise rows first; False takes distances of the rows as given (ignored by "cosine").

    Anchors without negatives form no triplet. No triplet: loss 0 with zero gradient. Equal distances are ties
    even if rounding parts them: ties belong to "hard_band", not to the semi-hard rules. At D = 0 the
    derivative of D is 0. Range [0, ∞). Memory is that of P x M numbers for P positive pairs, never N x M x M.

    GPW weight (squared distance, before the divisor): 2 · the number of active triplets that the pair is in;
    with "distance" that number / D. Softplus counts σ(D_ap - D_an + margin) in place of 1.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> round(TripletLoss(margin=0.5, mining="all")(x, torch.tensor([0, 0, 1])).item(), 4)  # 0.4 - 0.08 + 0.5
    0.46
    """

    def __init__(
        self,
        margin: float = 0.2,
        mining: Mining = "semihard",
        form: Form = "squared_distance",
        soft_margin: bool = False,
        reduction: Reduction = "nonzero",
        swap: bool = False,
        singletons: Singletons = "skip",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("mining", mining, get_args(Mining)),
            ("form", form, get_args(Form)),
            ("reduction", reduction, get_args(Reduction)),
            ("singletons", singletons, get_args(Singletons)),
        ):
            if value not in choices:
                raise InputError(
                    f"`{name}` of TripletLoss is {value!r}; expected one of {', '.join(choices)}."
                    f"{did_you_mean(value, choices)}"
                )
        self.margin = margin
        self.mining: Mining = mining
        self.form = form
        self.soft_margin = soft_margin
        self.reduction = reduction
        self.swap = swap
        self.singletons = singletons
        self.normalize = normalize

    def of_batch(self, batch: Batch) -> Tensor:
        distance, order, noise = self._distances(batch)
        pairs = pairs_of(batch)
        if distance.shape[1] == 0:
            return distance.sum()

        anchor, positive = _positive_pairs(order, pairs, self.mining)
        to_positive, order_positive = distance[anchor, positive], order[anchor, positive]
        positive_rows = batch.refs[positive] if self.swap else None
        if self.singletons == "push":
            lone = (~pairs.positive.any(1)).nonzero()[:, 0]
            itself = -1.0 if self.form == "cosine" else 0.0
            anchor = torch.cat([anchor, lone])
            to_positive = torch.cat([to_positive, to_positive.new_full((len(lone),), itself)])
            order_positive = torch.cat([order_positive, order_positive.new_full((len(lone),), itself)])
            if positive_rows is not None:
                positive_rows = torch.cat([positive_rows, batch.anchors[lone]])

        # From here on one row a positive pair, [P, M].
        to_negative = distance[anchor]
        further = order[anchor] - order_positive[:, None] > (noise[anchor] if noise.ndim else noise)
        gap = (to_negative - to_positive[:, None]).detach()
        column, chosen = _negatives(
            order[anchor], pairs.negative[anchor], further, gap <= self.margin, self.mining
        )
        if positive_rows is not None:
            from_positive, _, _ = self._distances(batch._replace(anchors=positive_rows))
            to_negative = torch.minimum(to_negative, from_positive)
        if column is not None:
            to_negative = to_negative.gather(1, column)
        return self.of_distances(to_positive[:, None], to_negative, chosen)

    def of_distances(self, to_positive: Tensor, to_negative: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The loss of triplets given by their distances D_ap and D_an, of any shapes that broadcast.

        ``chosen`` (bool, the broadcast shape) says which of them count; None: all.
        """
        excess = to_positive - to_negative + self.margin
        cost = softplus(excess) if self.soft_margin else excess.relu()
        if chosen is not None:
            cost = torch.where(chosen, cost, 0)
        if self.reduction == "nonzero":
            count = (cost > 0).sum()
        else:
            count = chosen.sum() if chosen is not None else torch.tensor(cost.numel(), device=cost.device)
        return cost.sum() / count.clamp_min(1)

    def _distances(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """D [N, M]; the same order in a form whose rounding is known, without gradient; and that rounding."""
        if self.form == "cosine":
            distance = -cosine(batch)
            noise = distance.new_tensor(8 * torch.finfo(distance.dtype).eps)
            return distance, distance.detach(), noise
        squared, noise = squared_distances(batch, normalize=self.normalize)
        return (squared if self.form == "squared_distance" else root(squared)), squared.detach(), noise

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, mining={self.mining!r}, form={self.form!r}, "
            f"soft_margin={self.soft_margin}, reduction={self.reduction!r}, swap={self.swap}, "
            f"singletons={self.singletons!r}, normalize={self.normalize}"
        )


def _positive_pairs(order: Tensor, pairs: Pairs, mining: Mining) -> tuple[Tensor, Tensor]:
    """Anchors and positives, [P] each: all positive pairs, or one an anchor where the mining takes one."""
    if mining == "hard":
        positive = order.masked_fill(~pairs.positive, -torch.inf).argmax(1)
    elif mining == "easy_positive":
        positive = order.masked_fill(~pairs.positive, torch.inf).argmin(1)
    else:
        anchor, positive = pairs.positive.nonzero(as_tuple=True)
        return anchor, positive
    anchor = pairs.positive.any(1).nonzero()[:, 0]
    return anchor, positive[anchor]


def _negatives(
    order: Tensor, negative: Tensor, further: Tensor, within: Tensor, mining: Mining
) -> tuple[Tensor | None, Tensor]:
    """Which negatives each positive pair meets, all arguments [P, M].

    Either (None, mask [P, M]), or one negative a pair as (column [P, 1], whether there is one [P, 1]).
    """
    if mining == "all":
        return None, negative
    if mining == "semihard_band":
        return None, negative & further & within
    if mining == "hard_band":
        return None, negative & ~further
    if mining == "hard":
        return order.masked_fill(~negative, torch.inf).argmin(1, keepdim=True), negative.any(1, keepdim=True)
    beyond = negative & further
    nearest = order.masked_fill(~beyond, torch.inf).argmin(1, keepdim=True)
    found = beyond.any(1, keepdim=True)
    if mining == "easy_positive":
        return nearest, found
    furthest = order.masked_fill(~negative, -torch.inf).argmax(1, keepdim=True)
    return torch.where(found, nearest, furthest), negative.any(1, keepdim=True)

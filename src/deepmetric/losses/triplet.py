"""Triplet loss (Schroff, Kalenichenko, Philbin 2015) with its ways of choosing triplets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison, PairList
from deepmetric.losses.streamed.metric import Kind
from deepmetric.losses.streamed.tiles import BIG

Form = Literal["squared_distance", "distance", "cosine"]
Mining = Literal["all", "semihard", "semihard_band", "hard", "hard_band", "easy_positive"]
Reduction = Literal["nonzero", "mean"]
Singletons = Literal["skip", "push"]

_KINDS: dict[str, Kind] = {"squared_distance": "squared", "distance": "distance", "cosine": "dot"}


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
    derivative of D is 0. Range [0, ∞). With ``swap``, "all" and the bands take memory for P x M numbers, P the
    positive pairs and M the references; nothing else does.

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
        check_choice("TripletLoss", "mining", mining, Mining)
        check_choice("TripletLoss", "form", form, Form)
        check_choice("TripletLoss", "reduction", reduction, Reduction)
        check_choice("TripletLoss", "singletons", singletons, Singletons)
        self.margin = margin
        self.mining: Mining = mining
        self.form = form
        self.soft_margin = soft_margin
        self.reduction = reduction
        self.swap = swap
        self.singletons = singletons
        self.normalize = normalize
        # With the swap positives are anchors too.
        self.over_parts = not swap

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch, kind=_KINDS[self.form], normalize=self.normalize or self.form == "cosine")
        positives = self._positives(pairs)
        if self.mining in ("all", "semihard_band", "hard_band"):
            if self.swap:
                return self._swapped_bands(batch, pairs, positives)
            return self._bands(pairs, positives)
        return self._one_negative_each(batch, pairs, positives)

    def of_distances(self, to_positive: Tensor, to_negative: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The loss of triplets given by their distances D_ap and D_an, of any shapes that broadcast.

        ``chosen`` (bool, the broadcast shape) says which of them count; None: all.
        """
        excess = to_positive - to_negative + self.margin
        cost = softplus(excess) if self.soft_margin else excess.relu()
        if chosen is not None:
            cost = torch.where(chosen, cost, 0)
        if self.reduction == "nonzero":
            # Without a margin equal distances cost nothing; rounding must not count them.
            exact = self.margin != 0 or self.soft_margin
            rounding = 0 if exact else 16 * torch.finfo(cost.dtype).eps * (1 + to_positive.detach().abs())
            count = (cost > rounding).sum()
        else:
            count = chosen.sum() if chosen is not None else torch.tensor(cost.numel(), device=cost.device)
        return cost.sum() / count.clamp_min(1)

    @property
    def _scale(self) -> float:
        """Nearness is this times a pair's value, so that of two pairs the nearer has more of it."""
        return 1.0 if self.form == "cosine" else -1.0

    def _positives(self, pairs: Comparison) -> PairList:
        """The positive pairs that the mining takes: all, or one an anchor. A lone anchor that pushes is beside
        the reference -1."""
        if self.mining in ("hard", "easy_positive"):
            ref = pairs.positives.argmax(-self._scale if self.mining == "hard" else self._scale)
            anchor = (ref >= 0).nonzero()[:, 0]
            ref = ref[anchor]
            values = pairs.values(anchor, ref)
        else:
            every = pairs.positive_list
            if self.singletons == "skip":
                return every
            anchor, ref, values = every.anchor, every.ref, every.values
        if self.singletons == "push":
            lone = (pairs.positive_count == 0).nonzero()[:, 0]
            if pairs.processes is not None and pairs.processes.rank:
                lone = lone[:0]  # listed by one process
            anchor, ref = torch.cat([anchor, lone]), torch.cat([ref, torch.full_like(lone, -1)])
            itself = 1.0 if self.form == "cosine" else 0.0
            values = torch.cat([values, values.new_full((len(lone),), itself)])
        return PairList(anchor, ref, values, len(pairs.labels), pairs.processes)

    def _tied(self, pairs: Comparison, positives: PairList, *, nearer: bool = False) -> Tensor:
        """The nearness [P] at which a tie with the positive ends: negatives below it are further (those above
        it nearer) by more than the rounding of the matrix product. Without gradient."""
        values = positives.values.detach()
        eps = 8 * torch.finfo(values.dtype).eps
        if self.form == "cosine":
            return values + (eps if nearer else -eps)
        squared = values if self.form == "squared_distance" else values.square()
        noise: Tensor | float = 2 * eps
        if not pairs.normalize:
            # A reference as far as the positive is at most |x| + D long.
            norms = torch.linalg.vector_norm(pairs.anchors.detach(), dim=1)[positives.anchor]
            noise = eps * (norms.square() + (norms + squared.sqrt()).square())
        squared = (squared - noise).clamp_min(0) if nearer else squared + noise
        return -(squared if self.form == "squared_distance" else squared.sqrt())

    def _bands(self, pairs: Comparison, positives: PairList) -> Tensor:
        """The minings that take every negative of a range."""
        near = self._scale * positives.values
        threshold = near - self.margin  # nearer than this a negative costs
        at = threshold.detach()
        hinge = not self.soft_margin
        start = stop = None
        if self.mining == "semihard_band":
            start, stop = at, self._tied(pairs, positives)
        elif hinge and self.margin == 0:
            # Equal distances cost nothing; rounding must not count them among the costs above 0.
            start = self._tied(pairs, positives, nearer=True)
        elif self.mining == "hard_band":
            start = self._tied(pairs, positives)
            start = torch.maximum(start, at) if hinge else start
        cost, count = pairs.negatives.hinge_over_positives(
            positives, threshold, scale=self._scale, start=start, stop=stop, soft=self.soft_margin
        )
        if self.reduction == "mean" or self.soft_margin:
            if self.mining == "all":
                count = positives.total(positives.at(pairs.negative_count))
            elif self.mining == "hard_band" and hinge and self.margin <= 0:
                with torch.no_grad():
                    tied = self._tied(pairs, positives)
                    _, count = pairs.negatives.hinge_over_positives(positives, tied, scale=self._scale)
        return cost.sum() / count.sum().clamp_min(1)

    def _one_negative_each(self, batch: Batch, pairs: Comparison, positives: PairList) -> Tensor:
        """The minings that take one negative a positive; all is [N, K], K the most positives an anchor has."""
        bounds = positives.padded(self._tied(pairs, positives), -BIG)
        if self.mining == "hard":
            column = pairs.negatives.argmax(self._scale)[:, None]
        else:
            or_furthest = self.mining == "semihard"
            column = pairs.negatives.argmax_below(bounds, self._scale, or_smallest=or_furthest)
        to_negative, chosen = pairs.chosen(torch.where(bounds > -BIG, column, -1))
        to_positive = positives.padded(positives.values, 0.0)
        if self.swap:
            slots = positives.padded(torch.arange(len(positives.ref), device=column.device), -1)
            swapped = self._from_positives(batch, pairs, positives)
            from_positive = swapped.values(slots[chosen], column.expand_as(slots)[chosen])
            to_negative = self._nearer(to_negative, to_negative.masked_scatter(chosen, from_positive))
        if self.form == "cosine":
            to_positive, to_negative = -to_positive, -to_negative
        return self.of_distances(to_positive, to_negative, chosen)

    def _swapped_bands(self, batch: Batch, pairs: Comparison, positives: PairList) -> Tensor:
        """:meth:`_bands` with the swap. Of two distances a triplet counts the smaller, which is no sum over the
        pairs of one row: here alone [P, M] numbers are held."""
        values, _, negative = pairs.matrix
        chosen, near = negative[positives.anchor], self._scale * values.detach()[positives.anchor]
        further = near < self._tied(pairs, positives)[:, None]
        if self.mining == "semihard_band":
            within = near >= (self._scale * positives.values.detach() - self.margin)[:, None]
            chosen = chosen & further & within
        elif self.mining == "hard_band":
            chosen = chosen & ~further
        from_positive, _, _ = self._from_positives(batch, pairs, positives).matrix
        to_positive, to_negative = positives.values, self._nearer(values[positives.anchor], from_positive)
        if self.form == "cosine":
            to_positive, to_negative = -to_positive, -to_negative
        return self.of_distances(to_positive[:, None], to_negative, chosen)

    def _from_positives(self, batch: Batch, pairs: Comparison, positives: PairList) -> Comparison:
        """The positives themselves, [P] of them, against the references."""
        itself = positives.ref < 0  # an anchor that is its own positive; these come last
        rows = torch.cat(
            [
                batch.refs[positives.ref[~itself]].to(batch.anchors.dtype),
                batch.anchors[positives.anchor[itself]],
            ]
        )
        labels = batch.labels[positives.anchor]
        return Comparison(
            rows,
            labels,
            batch.refs,
            batch.ref_labels,
            None,
            kind=pairs.kind,
            normalize=pairs.normalize,
        )

    def _nearer(self, value: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(value, other) if self.form == "cosine" else torch.minimum(value, other)

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, mining={self.mining!r}, form={self.form!r}, "
            f"soft_margin={self.soft_margin}, reduction={self.reduction!r}, swap={self.swap}, "
            f"singletons={self.singletons!r}, normalize={self.normalize}"
        )

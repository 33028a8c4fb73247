"""Margin loss with distance-weighted sampling (Wu, Manmatha, Smola, Krähenbühl 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.classes import check_class_labels
from deepmetric.losses.inputs import Batch
from deepmetric.losses.sampling import numbered_generator, squared_distance_log_weight
from deepmetric.losses.streamed import Comparison

Sampling = Literal["distance", "all"]
Reduction = Literal["pairs", "triplets"]


class MarginLoss(PairLoss):
    r"""Positives nearer than a boundary, negatives further, both by a margin.

    Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017, eq. 5. With D the
    Euclidean distance of unit rows and β of the anchor's class, a triplet of anchor, positive and negative
    costs::

        [D_ap - β + margin]₊ + [β - D_an + margin]₊

    and L is the sum, plus nu β for each triplet, divided by the number of costs above 0.

    Args:
        margin: half of the gap that is left around the boundary.
        beta: the boundary, or one for each class.
        learn_beta: make it a parameter. (The recipe's ``learning_rates.loss`` is its learning rate; the authors
            take 0.1, with momentum.)
        num_classes: a boundary for each class, all from ``beta``; labels are then 0 ... num_classes - 1.
        nu: weight of the boundaries in the loss; above 0 it draws learned ones together.
        sampling: which triplets. "distance": for each positive pair one negative, drawn with a probability
            inverse to how common its distance is on the sphere (see
            :func:`~deepmetric.losses.sampling.distance_log_weight`). "all": every triplet.
        cutoff: distances below are drawn as if they were this ("distance").
        upper_cutoff: negatives at this distance or further are not drawn; None for beta + margin of the
            settings, from where on a negative costs nothing while beta is what it began with ("distance").
        reduction: the divisor: "pairs" counts the costs above 0 of each triplet, "triplets" the triplets with
            a cost above 0.
        seed: of the drawing.
        per_class: as ``num_classes``, but the number is told later by :meth:`set_classes`, which the trainer calls
            with the number of training classes; needs ``learn_beta``, as boundaries that stay alike need no number.

    Draws are a function of ``seed`` and of the number of calls in training mode, which ``state_dict`` holds
    (``draws``); in evaluation mode the number stands still. Where several processes share a memory they are a
    function of the number of processes too. An anchor without positives or without (drawn)
    negatives forms no triplet. No cost above 0: the loss is 0 with zero gradient, boundaries included. At D = 0
    the derivative is 0. Range [0, ∞) for nu = 0.

    GPW weight (before the divisor): 1[D > β - margin]/D on a positive and 1[D < β + margin]/D on a negative,
    times the number of triplets with that pair.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = MarginLoss(margin=0.2, beta=0.8, sampling="all")
    >>> round(loss(x, torch.tensor([0, 0, 1])).item(), 4)  # (0.0325 + 0.1056 + 0.0325 + 0.7172) / 4
    0.2219
    """

    draws: Tensor

    over_parts = True

    def __init__(
        self,
        margin: float = 0.2,
        beta: float | list[float] = 1.2,
        learn_beta: bool = False,
        num_classes: int | None = None,
        nu: float = 0.0,
        sampling: Sampling = "distance",
        cutoff: float = 0.5,
        upper_cutoff: float | None = None,
        reduction: Reduction = "pairs",
        seed: int = 0,
        per_class: bool = False,
    ) -> None:
        super().__init__()
        check_choice("MarginLoss", "sampling", sampling, Sampling)
        check_choice("MarginLoss", "reduction", reduction, Reduction)
        if beta == []:
            raise InputError(
                "`beta` of MarginLoss is an empty list; expected a boundary, or one for each class."
            )
        each = beta if isinstance(beta, list) else [beta] * (num_classes or 0)
        if num_classes is not None and (num_classes < 1 or len(each) != num_classes):
            raise InputError(
                f"`num_classes` of MarginLoss is {num_classes}, with {len(each)} boundaries in `beta`; expected a "
                "number above 0 and one boundary for each class. Leave `num_classes` out if `beta` is a list."
            )
        if not 0 < cutoff < 2:
            raise InputError(f"`cutoff` of MarginLoss must be between 0 and 2, got {cutoff}.")
        if nu < 0:
            raise InputError(f"`nu` of MarginLoss must be at least 0; got {nu}.")
        if per_class and not learn_beta:
            raise InputError("`per_class` of MarginLoss needs `learn_beta`: True.")
        self.margin = margin
        self.nu = nu
        self.sampling = sampling
        self.cutoff = cutoff
        furthest = max(beta) if isinstance(beta, list) else beta
        self.upper_cutoff = furthest + margin if upper_cutoff is None else upper_cutoff
        self.reduction = reduction
        self.seed = seed
        self.beta: float | Tensor
        if learn_beta:
            self.beta = nn.Parameter(torch.tensor(each if each else beta, dtype=torch.float32))
        elif each:
            self.register_buffer("beta", torch.tensor(each, dtype=torch.float32))
        else:
            assert not isinstance(beta, list)
            self.beta = float(beta)
        self.register_buffer("draws", torch.tensor(0))
        self.per_class = per_class

    def set_classes(self, num_classes: int, dim: int) -> None:
        """With ``per_class``: make the boundaries of classes 0 ... num_classes - 1. (``dim`` does not matter.)

        Raises:
            InputError: there are boundaries already, but fewer than classes.
        """
        if not isinstance(self.beta, Tensor):
            return
        if self.beta.ndim and len(self.beta) < num_classes:
            raise InputError(
                f"this MarginLoss has {len(self.beta)} boundaries, the training data {num_classes} classes. Set "
                "`per_class` and leave `num_classes` out, and give one `beta`."
            )
        if self.per_class and not self.beta.ndim:
            self.beta = nn.Parameter(self.beta.detach().repeat(num_classes))

    def of_batch(self, batch: Batch) -> Tensor:
        if self.per_class and isinstance(self.beta, Tensor) and not self.beta.ndim:
            raise InputError(
                "this MarginLoss does not know its classes. Call set_classes, or give `num_classes`."
            )
        pairs = Comparison(*batch, kind="distance")
        beta = self._boundary(batch.labels, batch.anchors)
        if self.sampling == "distance":
            return self._of_drawn(pairs, beta)
        below, far = pairs.positives.hinge_sum(beta - self.margin, above=True)
        above, near = pairs.negatives.hinge_sum(beta + self.margin, above=False)
        # A pair is in as many triplets as its anchor has pairs of the other kind.
        positives, negatives = pairs.positive_count.to(beta.dtype), pairs.negative_count.to(beta.dtype)
        total = negatives * below + positives * above + self.nu * positives * negatives * beta
        if self.reduction == "pairs":
            count = negatives * far + positives * near
        else:
            count = positives * negatives - (positives - far) * (negatives - near)
        return _mean(total.sum(), count.sum())

    def of_distances(
        self,
        to_positive: Tensor,
        to_negative: Tensor,
        labels: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """The loss of triplets given by their distances D_ap and D_an, of any shapes that broadcast.

        ``labels`` are the anchors' classes, needed where each class has its boundary; ``chosen`` (bool, the
        broadcast shape) says which triplets count; None: all.
        """
        if labels is None:
            if isinstance(self.beta, Tensor) and self.beta.ndim:
                raise InputError(
                    "`labels` are missing: this MarginLoss has a boundary for each class. Give the anchors' labels."
                )
            labels = torch.zeros((), dtype=torch.int64, device=to_positive.device)
        return self._of_triplets(to_positive, to_negative, self._boundary(labels, to_positive), chosen)

    def _of_triplets(
        self, to_positive: Tensor, to_negative: Tensor, beta: Tensor, chosen: Tensor | None
    ) -> Tensor:
        below = (to_positive - beta + self.margin).relu()
        above = (beta - to_negative + self.margin).relu()
        below, above, beta = torch.broadcast_tensors(below, above, beta)
        if chosen is not None:
            below, above, beta = (torch.where(chosen, part, 0) for part in (below, above, beta))
        if self.reduction == "pairs":
            count = (below > 0).sum() + (above > 0).sum()
        else:
            count = ((below > 0) | (above > 0)).sum()
        return _mean((below + above).sum() + self.nu * beta.sum(), count)

    def _of_drawn(self, pairs: Comparison, beta: Tensor) -> Tensor:
        listed, dim = pairs.positive_list, pairs.anchors.shape[1]
        to_positive = listed.padded(listed.values, 0.0)  # [N, K]
        used = listed.padded(torch.ones_like(listed.values), 0.0) > 0
        drawn = pairs.negatives.sample(
            lambda squared: squared_distance_log_weight(squared, dim, self.cutoff, self.upper_cutoff),
            used.shape[1],
            self._generator(beta.device, pairs.processes.rank if pairs.processes is not None else 0),
            kind="squared",
        )
        to_negative, found = pairs.chosen(torch.where(used, drawn, -1))
        return self._of_triplets(to_positive, to_negative, beta[:, None], found)

    def _generator(self, device: torch.device, rank: int) -> torch.Generator:
        """``rank``: of the process, where each draws among its own references."""
        number = int(self.draws)
        if self.training:
            self.draws += 1
        return numbered_generator(self.seed + 0x85EBCA6B * rank, number, device)

    def _boundary(self, labels: Tensor, like: Tensor) -> Tensor:
        """β of each label, in the dtype and on the device of ``like``."""
        if not isinstance(self.beta, Tensor):
            return like.new_full(labels.shape, self.beta)
        beta = self.beta.to(like)
        if not beta.ndim:
            return beta.expand(labels.shape)
        check_class_labels("MarginLoss", labels, len(beta))
        return beta.index_select(0, labels.long())  # which takes no negative label for one of the last

    def extra_repr(self) -> str:
        beta = self.beta
        shown = f"{len(beta)} boundaries" if isinstance(beta, Tensor) and beta.ndim else f"{float(beta):g}"
        return (
            f"margin={self.margin}, beta={shown}, learn_beta={isinstance(beta, nn.Parameter)}, nu={self.nu}, "
            f"sampling={self.sampling!r}, cutoff={self.cutoff}, upper_cutoff={self.upper_cutoff}, "
            f"reduction={self.reduction!r}, seed={self.seed}"
        )


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """total / count; 0 with zero gradient where nothing counts."""
    return torch.where(count > 0, total / count.clamp_min(1), 0 * total)

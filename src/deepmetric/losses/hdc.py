"""Hard-aware deeply cascaded embedding (Yuan, Yang, Zhang 2017): each level on the hard pairs of the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from deepmetric.errors import InputError, check_choice, check_widths
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.parts import compare_parts

Selection = Literal["cascade", "each"]
Reduction = Literal["joint", "nonzero"]


class HDCLoss(PairLoss):
    r"""A contrastive loss for each level of a cascade, deeper levels on harder pairs.

    Yuan, Yang, Zhang, "Hard-Aware Deeply Cascaded Embedding", ICCV 2017, eq. 3-6. The embedding is the levels'
    embeddings side by side (:class:`deepmetric.models.HDCModel`); with D² the squared distance between the unit
    rows of a level, a pair costs there::

        D²                                   a positive
        negative_weight [margin - D²]₊       a negative

    and a level's loss is the sum of its pairs' costs over a divisor (see ``reduction``). L is the sum of ``weights[k]``
    times level k's loss.

    Level 0 takes every pair. Its costliest pairs, a share ``fractions[1]`` of **all** positives and the same share of
    all negatives, are level 1's pairs; of those the costliest by level 1's distances, ``fractions[2]`` of all, are
    level 2's; and so on. Shares are rounded up. Pairs are ranked by distance, so that negatives beyond the margin,
    which all cost 0, keep an order. What is chosen has no gradient.

    Args:
        dims: width of each level's embedding; None: as many equal parts as there are ``fractions``.
        fractions: share of the pairs that each level takes, not increasing, the first 1.
        weights: of the levels; None: 1 each.
        margin: squared distance from which on a negative costs nothing.
        negative_weight: factor of the negatives: 1 in the paper, 10 in the authors' code.
        selection: "cascade" hands pairs over from level to level, as the paper has it; "each" lets each level take
            its share of all pairs by its own distances, as the authors' code does.
        reduction: "joint" divides a level's sum by the number of its costs above 0, as the authors' code does (the
            paper writes the sum alone); "nonzero" averages the positives' and the negatives' costs apart, each over
            those above 0, and adds the two, so that few positives are not outweighed by many negatives.

    Pairs are ordered: (i, j) and (j, i) both count. Range [0, ∞); no pair: 0 with zero gradient. The matrix of all
    pairs is held, [N, M] a level: against a large memory that is what limits its size.

    GPW weight on a selected pair of level k (before the divisor): 2 on a positive, 2 · negative_weight · 1[D² < margin]
    on a negative, of that level's cosine.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.8, 0.6, 1.0, 0.0], [0.6, 0.8, 0.8, 0.6]])
    >>> loss = HDCLoss(fractions=[1.0, 0.5])
    >>> round(loss(x, torch.tensor([0, 0, 1])).item(), 4)  # (2·0.4 + 2·0.2 + 2·0.92)/6 + 2·0.6/2
    1.1067
    """

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        fractions: Sequence[float] = (1.0, 0.5, 0.2),
        weights: Sequence[float] | None = None,
        margin: float = 1.0,
        negative_weight: float = 1.0,
        selection: Selection = "cascade",
        reduction: Reduction = "joint",
    ) -> None:
        super().__init__()
        check_choice("HDCLoss", "selection", selection, Selection)
        check_choice("HDCLoss", "reduction", reduction, Reduction)
        levels = len(fractions)
        falling = all(0 < b <= a for a, b in pairwise(fractions))
        if not levels or fractions[0] != 1 or not falling:
            raise InputError(
                f"`fractions` of HDCLoss are {list(fractions)}; expected the share of all pairs for each level, "
                "beginning with 1, each above 0 and none larger than the one before, for example [1.0, 0.5, 0.2]."
            )
        self.dims = None if dims is None else check_widths("HDCLoss", "dims", dims)
        self.weights = [1.0] * levels if weights is None else list(weights)
        for name, values in (("dims", self.dims), ("weights", self.weights)):
            if values is not None and len(values) != levels:
                raise InputError(
                    f"`{name}` of HDCLoss are {len(values)}, `fractions` {levels}; expected one of each for a level."
                )
        if negative_weight < 0:
            raise InputError(f"`negative_weight` of HDCLoss must be at least 0; got {negative_weight}.")
        self.fractions = list(fractions)
        self.margin = margin
        self.negative_weight = negative_weight
        self.selection = selection
        self.reduction = reduction

    def widths(self, width: int) -> list[int]:
        """The levels' widths in an embedding of ``width``.

        Raises:
            InputError: no ``dims`` are given, and equal parts do not make up ``width``.
        """
        if self.dims is not None:
            return self.dims
        levels = len(self.fractions)
        if width % levels:
            raise InputError(
                f"an embedding of width {width} has no {levels} equal parts; give HDCLoss their widths as `dims`."
            )
        return [width // levels] * levels

    def of_batch(self, batch: Batch) -> Tensor:
        levels = list(compare_parts("HDCLoss", batch, self.widths(batch.anchors.shape[1]), "squared"))
        distances = [level.matrix[0].flatten() for level in levels]
        _, positive, negative = levels[0].matrix
        every = [positive.flatten().nonzero()[:, 0], negative.flatten().nonzero()[:, 0]]
        chosen, judge, total = every, distances[0], batch.anchors.new_zeros(())
        for distance, fraction, weight in zip(distances, self.fractions, self.weights):
            if self.selection == "each":
                chosen, judge = every, distance
            chosen = [
                _first(judge, pairs, share_of(fraction, len(all_pairs)), furthest)
                for pairs, all_pairs, furthest in zip(chosen, every, (True, False))
            ]
            total = total + weight * self._of_level(*(distance[pairs] for pairs in chosen))
            judge = distance
        return total

    def _of_level(self, to_positives: Tensor, to_negatives: Tensor) -> Tensor:
        costs = [to_positives, self.negative_weight * (self.margin - to_negatives).relu()]
        paying = [(cost > 0).sum() for cost in costs]
        if self.reduction == "joint":
            paying = [paying[0] + paying[1]] * 2
        return sum(
            (cost.sum() / n.clamp_min(1) for cost, n in zip(costs, paying)), to_positives.new_zeros(())
        )

    def extra_repr(self) -> str:
        return (
            f"dims={self.dims}, fractions={self.fractions}, weights={self.weights}, margin={self.margin}, "
            f"negative_weight={self.negative_weight}, selection={self.selection!r}, reduction={self.reduction!r}"
        )


def share_of(fraction: float, count: int) -> int:
    """``fraction`` of ``count``, rounded up."""
    # 0.2 · 35 is 7.000000000000001 in floating point, which is meant as 7.
    return math.ceil(fraction * count - 1e-9)


def _first(distance: Tensor, pairs: Tensor, count: int, furthest: bool) -> Tensor:
    """The ``count`` furthest or nearest of ``pairs``, positions in ``distance``."""
    if count >= len(pairs):
        return pairs
    return pairs[distance.detach()[pairs].topk(count, largest=furthest, sorted=False).indices]

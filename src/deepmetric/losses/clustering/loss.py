"""Clustering loss by facility location (Song et al. 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.clustering.medoids import greedy_medoids, refine_medoids
from deepmetric.losses.clustering.mutual_information import Classes, Normalizer
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.dense import value_matrix
from deepmetric.losses.streamed.metric import Kind

Distance = Literal["distance", "squared_distance"]
_KINDS: dict[str, Kind] = {"distance": "distance", "squared_distance": "squared"}


class ClusteringLoss(PairLoss):
    r"""The true classes must cluster the batch better than any wrong clustering does, by a margin.

    Song, Jegelka, Rathod, Murphy, "Deep Metric Learning via Facility Location", CVPR 2017, eq. 5 to 9. Rows are
    L2-normalised. A set A of items is scored by what it costs to serve everybody from the nearest of them, the classes
    by the best item of each:

        F(X, A) = - Σ_i min_{j in A} D_ij
        F̃(X, y) = Σ_classes max_{j in c} ( - Σ_{i in c} D_ij )
        L = [ max_{A, |A| = number of classes} { F(X, A) + γ (1 - NMI(A, y)) } - F̃(X, y) ]₊

    NMI is the normalised mutual information of "nearest item of A" with the labels of the batch. The maximum is
    sought greedily and then refined (:func:`~deepmetric.losses.clustering.greedy_medoids`,
    :func:`~deepmetric.losses.clustering.refine_medoids`), without gradient; the gradient is that of F - F̃ with the
    items found. A sum over the batch, not a mean. Range [0, ∞).

    The batch is clustered as a whole: there is no form against references, nor with a memory. Over several processes
    every one of them clusters the joined batch.

    Args:
        gamma: γ, at least 0: how much a wholly wrong clustering must be worse, in units of F, which is about minus
            the batch size times a distance. The paper decays it by 0.94 (its start is not published); searches of
            others took 10 to 10,000.
        refinements: rounds of refinement, the authors' 5.
        distance: "distance" (paper), or "squared_distance" (the re-implementation of Roth et al. 2020).
        nmi: mean of the two entropies that the mutual information is divided by: "geometric", as scikit-learn had it
            when the paper was written, or "arithmetic", as it has it now.
        normalize: L2-normalise rows first.

    Without two rows of different classes or with classes of one item only the loss is 0 with zero gradient.

    GPW weight: +1/D on an item and its medoid in A, -1/D on an item and the best item of its class, nothing where
    both are the same (2 and -2 for squared distances). The first may be a pair of one class.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> loss = ClusteringLoss(gamma=1.0)
    >>> loss(x, torch.tensor([0, 0, 1, 1])).item() < loss(x, torch.tensor([0, 1, 0, 1])).item()
    True
    """

    def __init__(
        self,
        gamma: float = 10.0,
        refinements: int = 5,
        distance: Distance = "distance",
        nmi: Normalizer = "geometric",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_choice("ClusteringLoss", "distance", distance, Distance)
        check_choice("ClusteringLoss", "nmi", nmi, Normalizer)
        if gamma < 0 or refinements < 0:
            raise InputError(
                f"`gamma` and `refinements` of ClusteringLoss must be at least 0; got {gamma} and {refinements}."
            )
        self.gamma = gamma
        self.refinements = refinements
        self.distance: Distance = distance
        self.nmi: Normalizer = nmi
        self.normalize = normalize

    def of_batch(self, batch: Batch) -> Tensor:
        if batch.refs is not batch.anchors or batch.own is None:
            raise InputError(
                "ClusteringLoss clusters one batch; it was given `ref_emb`. Leave that out, and the memory too."
            )
        if not len(batch.anchors):
            return batch.anchors.sum()
        kind = _KINDS[self.distance]
        pairs = Comparison(
            batch.anchors,
            batch.labels,
            batch.refs,
            batch.ref_labels,
            batch.own,
            kind=kind,
            normalize=self.normalize,
        )
        with torch.no_grad():
            distances = value_matrix(pairs.anchors, pairs.anchors, kind, self.normalize)
            # The search must not meet what is no number: the loss becomes NaN by its values.
            distances.fill_diagonal_(0).nan_to_num_(0.0, 0.0, 0.0)
            classes = Classes.from_labels(batch.labels, distances.dtype, self.nmi)
            found = greedy_medoids(distances, classes, self.gamma)
            found = refine_medoids(distances, classes, self.gamma, found, self.refinements)
            margin = found.augmented(distances, classes, self.gamma) - found.facility(distances)
            wrong, right = found.medoids[found.cluster], oracle_medoids(distances, classes)[classes.of]
        item = torch.arange(len(right), device=right.device)
        # Paired, so that where both medoids are the same nothing is left, not even rounding.
        apart = pairs.values(item, right) - pairs.values(item, wrong)
        return (apart.sum() + margin).clamp_min(0)

    def extra_repr(self) -> str:
        return (
            f"gamma={self.gamma}, refinements={self.refinements}, distance={self.distance!r}, nmi={self.nmi!r}, "
            f"normalize={self.normalize}"
        )


def oracle_medoids(distances: Tensor, classes: Classes) -> Tensor:
    """Of each class the item with the smallest sum of distances to the class, the first of equals: [classes]."""
    same = classes.of[:, None] == classes.of[None, :]
    cost = torch.where(same, distances, 0).sum(0)
    best = cost.new_zeros(classes.number).scatter_reduce(0, classes.of, cost, "amin", include_self=False)
    n = len(cost)
    place = torch.where(cost == best[classes.of], torch.arange(n, device=cost.device), n)
    return place.new_full((classes.number,), n).scatter_reduce(0, classes.of, place, "amin")

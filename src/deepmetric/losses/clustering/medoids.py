"""Loss-augmented inference: medoids that cover the batch well and cluster it wrongly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepmetric.losses.clustering.mutual_information import Classes, nmi, nmi_with_added


class Clustering(NamedTuple):
    """Medoids and the items that belong to each."""

    medoids: Tensor  # [k] int64, different items
    cluster: Tensor  # [n] int64, 0 ... k - 1: the nearest medoid, for a medoid itself

    def facility(self, distances: Tensor) -> Tensor:
        """F(X, A): minus the sum of the distances [n, n] of all items to their medoids."""
        return -distances.gather(1, self.medoids[self.cluster][:, None]).sum()

    def augmented(self, distances: Tensor, classes: Classes, gamma: float) -> Tensor:
        """F(X, A) + γ (1 - NMI)."""
        return self.facility(distances) + gamma * (1 - nmi(classes, self.cluster))


def nearest(distances: Tensor, medoids: Tensor) -> Clustering:
    """Every item with its nearest medoid; a medoid with itself, also where another is at distance 0."""
    cluster = distances[:, medoids].argmin(1)
    cluster[medoids] = torch.arange(len(medoids), device=medoids.device)
    return Clustering(medoids, cluster)


def greedy_medoids(distances: Tensor, classes: Classes, gamma: float) -> Clustering:
    """Medoids added one after another, each the one that raises F + γ (1 - NMI) most (Song et al. 2017, algorithm 1),
    as many as there are classes.

    Without γ, what F gains over all items at the largest distance is at least 1 - 1/e of what the best set gains.

    Args:
        distances: [n, n], without gradient; n at least 1.
        classes: of the items.
        gamma: γ, at least 0.
    """
    n, k = len(distances), classes.number
    distance = distances.new_full((n,), torch.inf)  # to the nearest medoid so far
    cluster: Tensor | None = None
    taken = torch.zeros(n, dtype=torch.bool, device=distances.device)
    medoids = torch.empty(k, dtype=torch.int64, device=distances.device)
    everyone = torch.arange(n, device=distances.device)
    for step in range(k):
        moved = _moved(distances, distance, everyone, taken)
        score = -torch.minimum(distances, distance[:, None]).sum(0)
        if gamma:
            score += gamma * (1 - nmi_with_added(classes, cluster, moved))
        chosen = score.masked_fill(taken, -torch.inf).argmax()
        medoids[step] = chosen
        cluster = torch.where(moved[chosen], step, 0 if cluster is None else cluster)
        distance = torch.minimum(distance, distances[:, chosen])
        taken[chosen] = True
    assert cluster is not None
    return Clustering(medoids, cluster)


def refine_medoids(
    distances: Tensor, classes: Classes, gamma: float, found: Clustering, rounds: int
) -> Clustering:
    """Each cluster's medoid replaced by its best member, in rounds (Song et al. 2017, algorithm 2).

    A candidate's score is minus its distances to the cluster's members, who stay the same within a round, plus
    γ (1 - NMI) of all items assigned to the changed medoids. F + γ (1 - NMI) never falls. Ends early where a round
    changes nothing.
    """
    for _ in range(rounds):
        # Members as the round begins; medoids change as it goes on.
        medoids, cluster = found.medoids.clone(), found.cluster
        sizes = torch.bincount(cluster, minlength=len(medoids)).tolist()
        for c in (c for c, size in enumerate(sizes) if size > 1):
            members = (cluster == c).nonzero()[:, 0]
            score = -distances[members][:, members].sum(0)
            if gamma:
                score += gamma * (1 - _nmi_of_replacements(distances, classes, medoids, c, members))
            best = members[score.argmax()]
            # The present medoid stays where nothing is better.
            present = (members == medoids[c]).nonzero()[0, 0]
            medoids[c] = torch.where(score.amax() > score[present], best, medoids[c])
        if torch.equal(medoids, found.medoids):
            break
        found = nearest(distances, medoids)
    return found


def _nmi_of_replacements(
    distances: Tensor, classes: Classes, medoids: Tensor, c: int, candidates: Tensor
) -> Tensor:
    """NMI [candidates] with each of them in place of medoid c."""
    others = torch.cat([medoids[:c], medoids[c + 1 :]])
    taken = torch.zeros(len(distances), dtype=torch.bool, device=distances.device)
    taken[others] = True
    if not len(others):
        moved = torch.ones(len(candidates), len(distances), dtype=torch.bool, device=distances.device)
        return nmi_with_added(classes, None, moved)
    without = nearest(distances, others)
    distance = distances.gather(1, others[without.cluster][:, None])[:, 0]
    return nmi_with_added(
        classes, without.cluster, _moved(distances[:, candidates], distance, candidates, taken)
    )


def _moved(to_candidates: Tensor, distance: Tensor, candidates: Tensor, taken: Tensor) -> Tensor:
    """Who would join each candidate [c, n], given distances [n, c] to them: whoever is nearer than to the own
    medoid, and the candidate itself; other medoids never."""
    moved = (to_candidates < distance[:, None]) & ~taken[:, None]
    moved[candidates, torch.arange(len(candidates), device=candidates.device)] = True
    return moved.t()

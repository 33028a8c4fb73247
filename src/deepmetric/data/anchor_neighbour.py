"""Batches of classes with the classes nearest to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deepmetric.data.planned import PlannedSampler, at_least_one, deal_members, decks
from deepmetric.errors import InputError


class AnchorNeighbourSampler(PlannedSampler):
    """Batch sampler: each batch holds l anchor classes, each with its m - 1 nearest classes, t items a class.

    The anchor-neighbour sampling of Ge et al., "Deep Metric Learning with Hierarchical Triplet Loss", ECCV 2018.
    Anchors are dealt from shuffled decks: every class is an anchor before one returns. An anchor takes its nearest
    classes that are not in the batch yet, so that the l · m classes of a batch are distinct. Items come from a
    shuffled deck a class, as in :class:`MPerClassSampler`.

    An epoch has max(N // batch_size, ceil(C / (l * m))) batches.

    Several processes: rank r takes anchors r, r + world_size, ... with their neighbours, so that classes that are hard
    to tell apart stay together. State and resumption: :class:`PlannedSampler`; who sets ``neighbours`` keeps them
    too.

    Args:
        labels: integer [N] array or tensor; positions are the indices that are yielded.
        anchors: l, over all ranks.
        classes_per_anchor: m, the anchor's class included.
        instances: t.
        seed, rank, world_size: see :class:`PlannedSampler`.

    Attributes:
        neighbours: int [C, K], for each class (a position in ``classes``, the sorted labels) the others from the
            nearest on; K at least ``neighbours_needed``. To be set before the first batch, as the procedure
            :class:`deepmetric.training.HTL` does.

    Raises:
        InputError: fewer than l * m classes, l not divisible by ``world_size``, or arguments out of range.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | Tensor,
        anchors: int,
        classes_per_anchor: int,
        instances: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        at_least_one(anchors=anchors, classes_per_anchor=classes_per_anchor, instances=instances)
        self.anchors, self.classes_per_anchor, self.instances = anchors, classes_per_anchor, instances
        super().__init__(labels, anchors, classes_per_anchor * instances, seed, rank, world_size)
        if len(self.classes) < anchors * classes_per_anchor:
            raise InputError(
                f"sampler: {anchors} anchors x {classes_per_anchor} classes need {anchors * classes_per_anchor} "
                f"classes, and the data has {len(self.classes)}. Set fewer anchors or classes_per_anchor"
            )
        self._neighbours: np.ndarray | None = None

    @property
    def neighbours_needed(self) -> int:
        """So many nearest classes that m - 1 of them are always free."""
        return self.anchors * self.classes_per_anchor - 1

    @property
    def neighbours(self) -> np.ndarray | None:
        return self._neighbours

    @neighbours.setter
    def neighbours(self, neighbours: np.ndarray) -> None:
        if len(neighbours) != len(self.classes) or neighbours.shape[1] < self.neighbours_needed:
            raise InputError(
                f"sampler: neighbours must be [{len(self.classes)}, {self.neighbours_needed} or more], "
                f"got {list(neighbours.shape)}"
            )
        self._neighbours = np.asarray(neighbours)

    def __len__(self) -> int:
        per_batch = self.anchors * self.classes_per_anchor
        return max(len(self.class_of) // self.batch_size, -(-len(self.classes) // per_batch))

    def _plan(self, generator: np.random.Generator) -> np.ndarray:
        if self._neighbours is None:
            raise InputError(
                "AnchorNeighbourSampler has no neighbours yet: a recipe needs `procedure: {class_path: "
                "deepmetric.training.HTL}`, which finds them; a program sets `sampler.neighbours`"
            )
        anchors = decks(len(self) * self.anchors, len(self.classes), self.anchors, generator)
        classes = np.concatenate([self._with_neighbours(batch) for batch in anchors.reshape(len(self), -1)])
        return deal_members(classes, self.class_of, self.instances, generator).reshape(len(self), -1)

    def _with_neighbours(self, anchors: np.ndarray) -> np.ndarray:
        """The classes of a batch, each anchor followed by its neighbours: [l * m]."""
        assert self._neighbours is not None
        taken = np.zeros(len(self.classes), dtype=bool)
        taken[anchors] = True
        chosen = []
        for anchor in anchors:
            near = self._neighbours[anchor]
            free = near[~taken[near]][: self.classes_per_anchor - 1]
            taken[free] = True
            chosen += [[anchor], free]
        return np.concatenate(chosen)

    def _units_named(self) -> str:
        return f"anchors={self.units}"

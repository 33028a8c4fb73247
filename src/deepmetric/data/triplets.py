"""Batches of triplets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deepmetric.data.planned import PlannedSampler, at_least_one
from deepmetric.errors import InputError


class TripletSampler(PlannedSampler):
    """Batch sampler: anchor, positive, negative, anchor, positive, negative, ...

    Every item of a class with two items or more is an anchor once an epoch, in random order; a rest that does not fill
    a batch is left out. Positive and negative are drawn from the candidates that ``positives`` and ``negatives``
    name for the anchor; where they name none, from the anchor's class, and from all items of other classes.

    An epoch has max(1, anchors // triplets) batches; with fewer anchors than a batch they come in rounds.

    Several processes: rank r takes triplets r, r + world_size, ... of a batch. State and resumption:
    :class:`PlannedSampler`; who sets the candidates keeps them too.

    Args:
        labels: integer [N] array or tensor; positions are the indices that are yielded.
        triplets: in a batch of 3 * triplets items, over all ranks.
        seed, rank, world_size: see :class:`PlannedSampler`.

    Attributes:
        positives, negatives: int [N, K] positions of candidates of each item, -1 for none, or None. They may be set
            between batches, as the procedure :class:`deepmetric.training.SmartMining` does.

    Raises:
        InputError: a single class, no class with two items, ``triplets`` not divisible by ``world_size``, or arguments
            out of range; candidates of the wrong class or the anchor itself.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | Tensor,
        triplets: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        at_least_one(triplets=triplets)
        self.triplets = triplets
        super().__init__(labels, triplets, 3, seed, rank, world_size)
        self._sizes = np.bincount(self.class_of)
        # All items, class by class: the others of a class are found without a list for each item.
        self._by_class = np.argsort(self.class_of, kind="stable")
        self._first = np.cumsum(self._sizes) - self._sizes
        self._anchors = np.flatnonzero(self._sizes[self.class_of] > 1)
        if len(self.classes) < 2 or not len(self._anchors):
            raise InputError(
                f"sampler: triplets need two classes, one of them with two items; the data has "
                f"{len(self.classes)} classes, the largest of {self._sizes.max(initial=0)} items"
            )
        self._positives: np.ndarray | None = None
        self._negatives: np.ndarray | None = None

    @property
    def positives(self) -> np.ndarray | None:
        return self._positives

    @positives.setter
    def positives(self, table: np.ndarray | None) -> None:
        self._positives = self._checked("positives", table, same_class=True)

    @property
    def negatives(self) -> np.ndarray | None:
        return self._negatives

    @negatives.setter
    def negatives(self, table: np.ndarray | None) -> None:
        self._negatives = self._checked("negatives", table, same_class=False)

    def __len__(self) -> int:
        return max(1, len(self._anchors) // self.triplets)

    def _plan(self, generator: np.random.Generator) -> np.ndarray:
        anchors = np.resize(generator.permutation(self._anchors), len(self) * self.triplets)
        positives = _drawn(self._positives, anchors, self._of_class(anchors, generator), generator)
        negatives = _drawn(self._negatives, anchors, self._of_others(anchors, generator), generator)
        return np.stack([anchors, positives, negatives], axis=1).reshape(len(self), -1)

    def _of_class(self, anchors: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Another item of each anchor's class, all equally likely."""
        classes = self.class_of[anchors]
        places = np.empty(len(self.class_of), dtype=np.int64)
        places[self._by_class] = np.arange(len(places))
        ahead = generator.integers(1, self._sizes[classes])
        within = (places[anchors] - self._first[classes] + ahead) % self._sizes[classes]
        return self._by_class[self._first[classes] + within]

    def _of_others(self, anchors: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """An item of another class, all equally likely."""
        classes = self.class_of[anchors]
        after = self._first[classes] + self._sizes[classes]
        beyond = generator.integers(0, len(self.class_of) - self._sizes[classes])
        return self._by_class[(after + beyond) % len(self.class_of)]

    def _checked(self, name: str, table: np.ndarray | None, same_class: bool) -> np.ndarray | None:
        if table is None:
            return None
        table = np.asarray(table)
        n = len(self.class_of)
        if table.ndim != 2 or len(table) != n or table.min(initial=0) < -1 or table.max(initial=0) >= n:
            raise InputError(f"sampler: {name} must be positions [{n}, K], -1 for none; got {table.shape}")
        same = self.class_of[table] == self.class_of[:, None]
        wrong = (table >= 0) & ((same != same_class) | (table == np.arange(n)[:, None]))
        if wrong.any():
            item, slot = np.argwhere(wrong)[0]
            raise InputError(
                f"sampler: {name} of item {item} name item {table[item, slot]}, which is "
                f"{'itself' if table[item, slot] == item else 'of another class' if same_class else 'of its class'}"
            )
        return table

    def _units_named(self) -> str:
        return f"triplets={self.units}"


def _drawn(
    table: np.ndarray | None, anchors: np.ndarray, otherwise: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """One candidate of each anchor, all equally likely; ``otherwise`` where there is none."""
    if table is None or not table.shape[1]:
        return otherwise
    candidates = table[anchors]
    key = np.where(candidates >= 0, generator.random(candidates.shape), -1.0)
    slot = key.argmax(axis=1)[:, None]
    drawn = np.take_along_axis(candidates, slot, axis=1)[:, 0]
    return np.where(drawn >= 0, drawn, otherwise)

"""Batches of P classes x M instances, the diet of every pair-based loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deepmetric.data.planned import PlannedSampler, at_least_one, deal_members, decks
from deepmetric.errors import InputError


class MPerClassSampler(PlannedSampler):
    """Batch sampler: each batch holds ``classes_per_batch`` distinct classes with ``instances`` items each.

    An epoch is a function of (seed, epoch) alone. Classes are dealt from shuffled decks: every class is visited before
    one returns. Items are dealt from a shuffled deck a class: a visit takes the next M, round and round, so that every
    item of a class is seen before one returns. A class with n < M items gives its n items in rounds until M are
    reached: each appears floor(M/n) or ceil(M/n) times.

    An epoch has max(N // (P*M), ceil(C/P)) batches: about N items, and every class at least once. With unequal classes
    it is no pass over all items: small classes return while large ones still wait for their rest.

    Several processes: rank r takes classes r, r + world_size, ... of a batch. Each class stays whole on one rank, so
    that each rank has its positives. State and resumption: :class:`PlannedSampler`.

    Args:
        labels: integer [N] array or tensor; positions are the indices that are yielded.
        classes_per_batch: P, over all ranks.
        instances: M.
        seed, rank, world_size: see :class:`PlannedSampler`.

    Raises:
        InputError: fewer than P classes, P not divisible by ``world_size``, or arguments out of range.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | Tensor,
        classes_per_batch: int,
        instances: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        at_least_one(classes_per_batch=classes_per_batch, instances=instances)
        self.classes_per_batch, self.instances = classes_per_batch, instances
        super().__init__(labels, classes_per_batch, instances, seed, rank, world_size)
        if len(self.classes) < classes_per_batch:
            raise InputError(
                f"sampler: a batch of {classes_per_batch} classes needs as many, and the data has "
                f"{len(self.classes)}. Set classes_per_batch to at most {len(self.classes)}"
            )

    def __len__(self) -> int:
        return max(len(self.class_of) // self.batch_size, -(-len(self.classes) // self.classes_per_batch))

    def _plan(self, generator: np.random.Generator) -> np.ndarray:
        p = self.classes_per_batch
        classes = decks(len(self) * p, len(self.classes), p, generator)
        return deal_members(classes, self.class_of, self.instances, generator).reshape(len(self), -1)

    def _units_named(self) -> str:
        return f"classes_per_batch={self.units}"

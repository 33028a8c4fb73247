"""Batches of P classes x M instances, the diet of every pair-based loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from deepmetric.errors import InputError


class MPerClassSampler:
    """Batch sampler: each batch holds ``classes_per_batch`` distinct classes with ``instances`` items each.

    An epoch is a function of (seed, epoch) alone. Classes are dealt from shuffled decks: every class is visited before
    one returns. Items are dealt from a shuffled deck a class: a visit takes the next M, round and round, so that every
    item of a class is seen before one returns. A class with n < M items gives its n items in rounds until M are
    reached: each appears floor(M/n) or ceil(M/n) times.

    An epoch has max(N // (P*M), ceil(C/P)) batches: about N items, and every class at least once. With unequal classes
    it is no pass over all items: small classes return while large ones still wait for their rest.

    Several processes: the batch is planned as by one process, and rank r takes its classes r, r + world_size, ... .
    Each class stays whole on one rank, so that each rank has its positives, and the joined ranks see the batch
    that one process would.

    Iterating yields the rest of the current epoch. A batch counts as done when it is handed over: a loader with workers
    asks ahead, so whoever resumes saves the number of batches it has used, not ``state_dict()`` of a running loader.

    Args:
        labels: integer [N] array or tensor; positions are the indices that are yielded.
        classes_per_batch: P, over all ranks.
        instances: M.

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
        self.classes_per_batch, self.instances, self.seed = classes_per_batch, instances, seed
        self.rank, self.world_size = rank, world_size
        self._check_numbers()
        array = np.asarray(labels)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"sampler: labels must be a one-dimensional array of integers, got {array.dtype} {array.shape}"
            )
        _, self._class_of = np.unique(array, return_inverse=True)  # [N] in 0..C-1
        self._sizes = np.bincount(self._class_of)  # [C]
        if len(self._sizes) < classes_per_batch:
            raise InputError(
                f"sampler: a batch of {classes_per_batch} classes needs as many, and the data has {len(self._sizes)}. "
                f"Set classes_per_batch to at most {len(self._sizes)}"
            )
        self.epoch = 0
        self.position = 0

    @property
    def batch_size(self) -> int:
        """Items in a batch, over all ranks."""
        return self.classes_per_batch * self.instances

    def __len__(self) -> int:
        """Batches in an epoch, those already yielded included."""
        return max(len(self._class_of) // self.batch_size, -(-len(self._sizes) // self.classes_per_batch))

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._plan(self.epoch)[self.position :]
        for batch in plan:
            # Before the yield: a state taken between two batches must not repeat the one just given.
            self.position += 1
            if self.position == len(self):
                self.epoch, self.position = self.epoch + 1, 0
            yield batch.tolist()

    def state_dict(self) -> dict[str, int]:
        """Where the next batch comes from: ``{"epoch": int, "position": int}``, position counted in batches."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at ``state``; a position at or past the end of its epoch carries over into the next ones."""
        carried, position = divmod(int(state["position"]), len(self))
        self.epoch, self.position = int(state["epoch"]) + carried, position

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; in the current epoch already, the position is kept."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def _plan(self, epoch: int) -> np.ndarray:
        """This rank's batches of an epoch: int64 [batches, P / world_size * M]."""
        p, m, batches = self.classes_per_batch, self.instances, len(self)
        generator = np.random.default_rng([self.seed, epoch])
        classes = self._class_sequence(batches * p, generator)  # [batches * P]
        # The how-manieth visit to its class each slot is: its rank among the slots of that class.
        order = np.argsort(classes, kind="stable")
        visits = np.bincount(classes, minlength=len(self._sizes))
        visit = np.empty_like(classes)
        visit[order] = np.arange(len(classes)) - np.repeat(np.cumsum(visits) - visits, visits)
        # All items, grouped by class and shuffled within it.
        deck = np.lexsort((generator.random(len(self._class_of)), self._class_of))
        first = np.cumsum(self._sizes) - self._sizes
        turn = (visit[:, None] * m + np.arange(m)) % self._sizes[classes][:, None]  # [batches * P, M]
        items = deck[first[classes][:, None] + turn].reshape(batches, p, m)
        return items[:, self.rank :: self.world_size].reshape(batches, -1)

    def _class_sequence(self, length: int, generator: np.random.Generator) -> np.ndarray:
        """Shuffled decks of all C classes one after another, no batch of P holding a class twice: int64 [length]."""
        p, c = self.classes_per_batch, len(self._sizes)
        decks = np.argsort(generator.random((-(-length // c), c)), axis=1, kind="stable")
        for k in range(1, len(decks)):
            begun = k * c % p  # slots of the batch across the border that deck k - 1 has filled
            if not begun:
                continue
            deck, taken = decks[k], decks[k - 1, c - begun :]
            clash = np.isin(deck, taken)
            # Classes that clash in the batch's open slots change places with the next ones that do not.
            out = np.flatnonzero(clash[: p - begun])
            into = p - begun + np.flatnonzero(~clash[p - begun :])[: len(out)]
            deck[out], deck[into] = deck[into], deck[out]
        return decks.reshape(-1)[:length]

    def _check_numbers(self) -> None:
        p, world = self.classes_per_batch, self.world_size
        if p < 1 or self.instances < 1 or self.seed < 0:
            raise InputError(
                f"sampler: classes_per_batch={p} and instances={self.instances} must be at least 1, "
                f"seed={self.seed} at least 0"
            )
        if world < 1 or not 0 <= self.rank < world:
            raise InputError(
                f"sampler: rank={self.rank} must be in 0..world_size-1, and world_size={world} at least 1"
            )
        if p % world:
            raise InputError(
                f"sampler: {p} classes a batch cannot be dealt evenly to {world} processes. Set classes_per_batch "
                f"to a multiple of {world}, for example {-(-p // world) * world}"
            )

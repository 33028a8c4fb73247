"""Batch samplers whose epochs are planned: what any of them owes a trainer that is killed and resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from deepmetric.errors import InputError


class PlannedSampler:
    """Batches of one size, an epoch of them a function of (seed, epoch) and of the sampler's settings alone.

    Iterating yields the rest of the current epoch. A batch counts as done when it is handed over: a loader with workers
    asks ahead, so whoever resumes saves the number of batches it has used, not ``state_dict()`` of a running loader.

    Several processes: the batch is planned as by one process, and rank r takes units r, r + world_size, ... of it,
    so that the joined ranks see the batch that one process would. What a unit is (a class, a triplet, an item), the
    subclass says.

    Args:
        labels: integer [N] array or tensor; positions are the indices that are yielded.
        units: units in a batch, over all ranks.
        unit_size: items in a unit.
        seed: of the shuffles, at least 0.
        rank, world_size: this process's number, from 0, and how many there are.

    Raises:
        InputError: labels that are not integers [N], ``units`` not divisible by ``world_size``, or numbers out of
            range.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | Tensor,
        units: int,
        unit_size: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.units, self.unit_size = units, unit_size
        self._check_numbers()
        array = np.asarray(labels)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"sampler: labels must be a one-dimensional array of integers, got {array.dtype} {array.shape}"
            )
        self.classes, self.class_of = np.unique(array, return_inverse=True)  # [C] labels, [N] in 0..C-1
        self.epoch = 0
        self.position = 0

    @property
    def batch_size(self) -> int:
        """Items in a batch, over all ranks."""
        return self.units * self.unit_size

    @property
    def places(self) -> list[int]:
        """Where in the batch of all ranks the items of this rank's part stand."""
        whole = np.arange(self.batch_size).reshape(self.units, self.unit_size)
        return whole[self.rank :: self.world_size].reshape(-1).tolist()

    def __len__(self) -> int:
        """Batches in an epoch, those already yielded included."""
        raise NotImplementedError

    def _plan(self, generator: np.random.Generator) -> np.ndarray:
        """An epoch of all ranks: int64 [len(self), units * unit_size], unit after unit."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._plan(np.random.default_rng([self.seed, self.epoch]))
        shared = plan.reshape(len(self), self.units, self.unit_size)[:, self.rank :: self.world_size]
        for batch in shared.reshape(len(self), -1)[self.position :]:
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

    def _check_numbers(self) -> None:
        units, world = self.units, self.world_size
        if world < 1 or not 0 <= self.rank < world:
            raise InputError(
                f"sampler: rank={self.rank} must be in 0..world_size-1, and world_size={world} at least 1"
            )
        if self.seed < 0:
            raise InputError(f"sampler: seed={self.seed} must be at least 0")
        if units % world:
            raise InputError(
                f"sampler: {self._units_named()} cannot be dealt evenly to {world} processes. Make it "
                f"a multiple of {world}, for example {-(-units // world) * world}"
            )

    def _units_named(self) -> str:
        """The size of a batch in the words of the subclass's arguments."""
        return f"a batch of {self.units}"


def at_least_one(**numbers: int) -> None:
    """Raise InputError unless each of the named numbers is 1 or more."""
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"sampler: {name}={number} must be at least 1")


def decks(length: int, cards: int, hand: int, generator: np.random.Generator) -> np.ndarray:
    """Shuffled decks of ``cards`` numbers one after another, no hand of ``hand`` in a row holding one twice.

    int64 [length]; every number comes before one returns. ``hand`` is at most ``cards``.
    """
    dealt = np.argsort(generator.random((-(-length // cards), cards)), axis=1, kind="stable")
    for k in range(1, len(dealt)):
        begun = k * cards % hand  # slots of the hand across the border that deck k - 1 has filled
        if not begun:
            continue
        deck, taken = dealt[k], dealt[k - 1, cards - begun :]
        clash = np.isin(deck, taken)
        # Numbers that clash in the hand's open slots change places with the next ones that do not.
        out = np.flatnonzero(clash[: hand - begun])
        into = hand - begun + np.flatnonzero(~clash[hand - begun :])[: len(out)]
        deck[out], deck[into] = deck[into], deck[out]
    return dealt.reshape(-1)[:length]


def deal_members(
    groups: np.ndarray, group_of: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """``count`` members of each of ``groups`` [V], from a shuffled deck a group: int64 [V, count].

    ``group_of`` [N] says of which group each member is. A later visit to a group goes on where the one before
    stopped, round and round; a group of n < count members gives each floor(count/n) or ceil(count/n) times.
    """
    sizes = np.bincount(group_of)
    # The how-manieth visit to its group each slot is: its rank among the slots of that group.
    order = np.argsort(groups, kind="stable")
    visits = np.bincount(groups, minlength=len(sizes))
    visit = np.empty_like(groups)
    visit[order] = np.arange(len(groups)) - np.repeat(np.cumsum(visits) - visits, visits)
    # All members, sorted by group and shuffled within it.
    deck = np.lexsort((generator.random(len(group_of)), group_of))
    first = np.cumsum(sizes) - sizes
    turn = (visit[:, None] * count + np.arange(count)) % sizes[groups][:, None]
    return deck[first[groups][:, None] + turn]

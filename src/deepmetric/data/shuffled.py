"""Batches without regard to classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deepmetric.data.planned import PlannedSampler, at_least_one
from deepmetric.errors import InputError


class ShuffledSampler(PlannedSampler):
    """Batch sampler: the items shuffled and cut into batches, the diet of classification and proxy losses.

    An epoch has N // batch_size batches and shows no item twice; a rest that does not fill a batch is left out, another
    one each epoch, as with a DataLoader's ``shuffle=True, drop_last=True``. A batch may hold no positive pair.

    Several processes: rank r takes items r, r + world_size, ... of a batch. State and resumption:
    :class:`PlannedSampler`.

    Args:
        labels: integer [N] array or tensor; only its length counts.
        batch_size: items in a batch, over all ranks.
        seed, rank, world_size: see :class:`PlannedSampler`.

    Raises:
        InputError: fewer items than a batch, ``batch_size`` not divisible by ``world_size``, or arguments out of range.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | Tensor,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        at_least_one(batch_size=batch_size)
        super().__init__(labels, batch_size, 1, seed, rank, world_size)
        if len(self.class_of) < batch_size:
            raise InputError(
                f"sampler: a batch of {batch_size} items needs as many, and the data has {len(self.class_of)}. "
                f"Set batch_size to at most {len(self.class_of)}"
            )

    def __len__(self) -> int:
        return len(self.class_of) // self.batch_size

    def _plan(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.class_of))[: len(self) * self.batch_size].reshape(len(self), -1)

    def _units_named(self) -> str:
        return f"batch_size={self.units}"

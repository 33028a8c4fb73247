"""Items -> batches, with augmentation that does not depend on how many workers made it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deepmetric.data.dataset import Dataset, Item
from deepmetric.errors import InputError

Draw = tuple[int, int]  # (draw number, index)


class Batch(NamedTuple):
    """What the loader yields."""

    images: Tensor  # [B, 3, H, W]; uint8 unless the transform says otherwise
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], positions in the dataset


def numbered(
    batches: Iterable[list[int]],
    first_draw: int,
    places: Sequence[int] | None = None,
    size: int | None = None,
) -> Iterator[list[Draw]]:
    """Each index with the running number of its draw, counted from ``first_draw``.

    The number seeds the item's augmentation, so a resumed run that knows how many items it drew makes the same images.
    Where each of several processes has a part of a batch of ``size``, ``places`` of it, numbers count through the
    batches of all, and the images are those of one process.

    >>> list(numbered([[7, 3], [7]], first_draw=10))
    [[(10, 7), (11, 3)], [(12, 7)]]
    """
    draw = first_draw
    for batch in batches:
        yield [(draw + place, index) for place, index in zip(places or range(len(batch)), batch)]
        draw += size or len(batch)


def make_loader(
    dataset: Dataset,
    *,
    batch_size: int | None = None,
    batch_sampler: Iterable[list[int]] | Iterable[list[Draw]] | None = None,
    workers: int = 0,
    seed: int = 0,
) -> DataLoader[Batch]:
    """A loader of :class:`Batch`: all items in order by ``batch_size``, or the batches of ``batch_sampler``.

    A batch is a list of indices or, from :func:`numbered`, of (draw, index). The transform of a numbered item runs
    under a random state made from (seed, draw) alone, whatever the workers; its random numbers must come from torch.
    The loader has a generator of its own and takes nothing from torch's global one.

    Raises:
        InputError: neither or both of ``batch_size`` and ``batch_sampler``; while iterating, images of different sizes
            in one batch, and whatever reading an item raises, from a worker too, with its own type and message.
    """
    if (batch_size is None) == (batch_sampler is None):
        raise InputError("make_loader: give either batch_size or batch_sampler")
    if batch_size is not None:
        if batch_size < 1:
            raise InputError(f"make_loader: batch_size={batch_size} must be at least 1")
        batch_sampler = _in_order(len(dataset), batch_size)
    return _Loader(
        cast(Any, _Fetch(dataset, seed)),
        batch_sampler=cast(Any, batch_sampler),
        collate_fn=_identity,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
    )


def _in_order(total: int, batch_size: int) -> list[list[int]]:
    return [list(range(i, min(i + batch_size, total))) for i in range(0, total, batch_size)]


def _identity(batch: Any) -> Any:
    return batch


class _Loader(DataLoader):
    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, InputError):
                raise batch
            yield batch


class _Fetch:
    """A dataset that is asked for whole batches.

    It returns an InputError instead of raising it: the DataLoader would wrap a worker's traceback around the message.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: list[int] | list[Draw]) -> Batch | InputError:
        try:
            if not isinstance(batch[0], tuple):
                return self._collate([self.dataset[index] for index in cast("list[int]", batch)])
            with _random_state_put_back():
                return self._collate([self._augmented(*key) for key in cast("list[Draw]", batch)])
        except InputError as error:
            return error

    def _augmented(self, draw: int, index: int) -> Item:
        seed = np.random.SeedSequence([self.seed, draw]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        # The CPU generator alone: torch.manual_seed would also reset the GPU's, which the model is using.
        torch.default_generator.manual_seed(int(seed))
        return self.dataset[index]

    def _collate(self, items: list[Item]) -> Batch:
        first = items[0]
        for item in items:
            if item.image.shape != first.image.shape:
                sizes = " and ".join(
                    f"{self.dataset.ids[one.index]} is {tuple(one.image.shape)}" for one in (first, item)
                )
                raise InputError(
                    f"images of different sizes in one batch: {sizes}. Give the data a transform that makes them "
                    "equal, "
                    "such as a resize and a crop"
                )
        return Batch(
            torch.stack([item.image for item in items]).contiguous(),
            torch.tensor([item.label for item in items], dtype=torch.int64),
            torch.tensor([item.index for item in items], dtype=torch.int64),
        )


@contextmanager
def _random_state_put_back() -> Iterator[None]:
    before = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(before)

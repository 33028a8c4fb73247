"""Batches that do not depend on who made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from deepmetric.data import (
    Batch,
    Dataset,
    FolderDataset,
    MPerClassSampler,
    UnreadableImage,
    make_loader,
    numbered,
)
from deepmetric.errors import InputError


class Noise(Dataset):
    def load(self, row: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng(row).integers(0, 256, (3, 12, 12), dtype=np.uint8))


def noise(n: int = 24) -> Dataset:
    labels = np.arange(n) % 6
    return Noise([f"item {i}" for i in range(n)], labels, [f"c{i}" for i in range(6)], np.full(n, "train"))


AUGMENTATION = v2.Compose([v2.RandomCrop(8), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)])


def test_all_items_in_order():
    data = noise()
    loader = make_loader(data, batch_size=7)
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    assert all(isinstance(batch, Batch) for batch in batches)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(24))
    assert torch.cat([batch.labels for batch in batches]).tolist() == data.labels.tolist()
    images = torch.cat([batch.images for batch in batches])
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert all(torch.equal(images[i], data.read(i)) for i in range(24))
    assert batches[0].labels.dtype == batches[0].indices.dtype == torch.int64
    assert len(list(loader)) == 4  # and again


def test_indices_are_those_of_the_subset():
    part = noise().subset([20, 3, 11])
    batch = next(iter(make_loader(part, batch_size=8)))
    assert batch.indices.tolist() == [0, 1, 2]
    assert batch.labels.tolist() == [2, 3, 5]


def test_batches_of_a_sampler():
    data = noise()
    planned = list(MPerClassSampler(data.labels, 3, 2))
    loader = make_loader(data, batch_sampler=MPerClassSampler(data.labels, 3, 2), workers=2)
    assert len(loader) == len(planned)
    assert [batch.indices.tolist() for batch in loader] == planned


def test_numbered_counts_draws():
    batches = [[5, 6], [7], [5]]
    assert list(numbered(batches, 100)) == [[(100, 5), (101, 6)], [(102, 7)], [(103, 5)]]


def drawn(workers: int, seed: int = 0, skip: int = 0) -> list[Tensor]:
    data = noise().with_transform(AUGMENTATION)
    plan = list(MPerClassSampler(data.labels, 3, 2))[skip:]
    loader = make_loader(data, batch_sampler=numbered(plan, skip * 6), workers=workers, seed=seed)
    return [batch.images for batch in loader]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_augmentation_does_not_depend_on_workers():
    alone = drawn(0)
    assert equal(drawn(2), alone)
    assert equal(drawn(1), alone)


def test_augmentation_continues_after_a_break():
    assert equal(drawn(0, skip=2), drawn(0)[2:])


def test_augmentation_differs_by_seed_and_by_draw():
    assert not equal(drawn(0, seed=1), drawn(0))
    data = noise().with_transform(AUGMENTATION)
    loader = make_loader(data, batch_sampler=numbered([[4] * 6], 0))
    images = next(iter(loader)).images
    assert len({image.numpy().tobytes() for image in images}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_alone(workers):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    drawn(workers)
    list(make_loader(noise(), batch_size=4, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_transform_that_fails_gives_the_random_state_back():
    def fail(image: Tensor) -> Tensor:
        torch.rand(3)
        raise InputError("no")

    before = torch.get_rng_state()
    with pytest.raises(InputError, match="no"):
        list(make_loader(noise().with_transform(fail), batch_sampler=numbered([[0]], 0)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes(workers):
    class Growing(Noise):
        def load(self, row: int) -> Tensor:
            return super().load(row)[:, :, : 12 - row]

    data = Growing(["first", "second"], np.array([0, 1]), ["a", "b"], np.full(2, "train"))
    with pytest.raises(InputError, match=r"first is \(3, 12, 12\) and second is \(3, 12, 11\).*resize"):
        list(make_loader(data, batch_size=2, workers=workers))


@pytest.mark.parametrize("numbering", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_keeps_its_type_and_message(noise_tree: Path, workers, numbering):
    (noise_tree / "b/1.png").write_bytes(b"broken")
    data = FolderDataset(noise_tree)
    batches = [list(range(i, i + 2)) for i in range(0, 12, 2)]
    loader = make_loader(
        data, batch_sampler=list(numbered(batches, 0)) if numbering else batches, workers=workers
    )
    seen = []
    with pytest.raises(UnreadableImage) as caught:
        seen.extend(batch.indices.tolist() for batch in loader)
    assert seen == [[0, 1], [2, 3]]  # the batches before it have come
    with pytest.raises(UnreadableImage) as direct:
        data.read(5)
    assert str(caught.value) == str(direct.value)
    assert caught.value.path == str(noise_tree / "b/1.png")
    assert "Traceback" not in str(caught.value)


def test_other_errors_of_workers_are_shown_in_full():
    def fail(image: Tensor) -> Tensor:
        raise ZeroDivisionError("in the transform")

    with pytest.raises(ZeroDivisionError, match="in the transform"):
        list(make_loader(noise().with_transform(fail), batch_size=4, workers=1))


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 2, "batch_sampler": [[0]]}, {"batch_size": 0}])
def test_wrong_arguments(arguments):
    with pytest.raises(InputError, match="make_loader"):
        make_loader(noise(), **arguments)


def test_floating_transforms_are_stacked_too():
    data = noise().with_transform(v2.ToDtype(torch.float32, scale=True))
    assert next(iter(make_loader(data, batch_size=3))).images.dtype == torch.float32

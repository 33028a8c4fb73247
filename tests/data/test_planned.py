"""What every batch sampler owes a trainer: size, length, resumption, ranks."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.data import (
    AnchorNeighbourSampler,
    HierarchicalSampler,
    MPerClassSampler,
    PlannedSampler,
    ShuffledSampler,
    TripletSampler,
)
from deepmetric.errors import InputError

KINDS = ["m_per_class", "shuffled", "hierarchical", "hierarchical weighted", "anchor_neighbour", "triplets"]


def make(kind: str, labels: np.ndarray, units: int, m: int, **ranks) -> PlannedSampler:
    """A sampler of ``units`` units a batch."""
    if kind == "m_per_class":
        return MPerClassSampler(labels, units, m, **ranks)
    if kind == "shuffled":
        return ShuffledSampler(labels, units, **ranks)
    if kind == "triplets":
        return TripletSampler(labels, units, **ranks)
    if kind == "anchor_neighbour":
        sampler = AnchorNeighbourSampler(labels, units, 2, m, **ranks)
        classes = len(sampler.classes)
        order = np.random.default_rng(0).random((classes, classes)).argsort(axis=1)
        sampler.neighbours = np.array([[c for c in order[k] if c != k] for k in range(classes)])
        return sampler
    weighted = kind.endswith("weighted")
    return HierarchicalSampler(labels, labels % 3, 1, units, m, weight_categories=weighted, **ranks)


def endless(sampler: PlannedSampler):
    while True:
        yield from sampler


@st.composite
def data(draw):
    """Labels of 8 to 12 classes, each of 1 to 9 items, the first of two."""
    sizes = [2, *draw(st.lists(st.integers(1, 9), min_size=7, max_size=11))]
    labels = np.repeat(np.arange(len(sizes)) * 2 - 5, sizes)
    return np.array(draw(st.permutations(labels.tolist())))


pytestmark = pytest.mark.parametrize("kind", KINDS)
units, instances, seeds, steps = st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 30)


@settings(max_examples=40)
@given(data(), units, instances, seeds)
def test_batches_have_one_size_and_epochs_one_length(kind, labels, units, m, seed):
    sampler = make(kind, labels, units, m, seed=seed)
    first, second = list(sampler), list(sampler)
    assert len(first) == len(second) == len(sampler)
    for batch in first + second:
        assert len(batch) == sampler.batch_size
        assert all(type(i) is int and 0 <= i < len(labels) for i in batch)
    assert sampler.state_dict() == {"epoch": 2, "position": 0}
    # a function of seed and epoch alone
    again = make(kind, labels, units, m, seed=seed)
    again.set_epoch(1)
    assert list(again) == second


@settings(max_examples=40)
@given(data(), units, instances, steps)
def test_state_continues_identically(kind, labels, units, m, stop):
    unbroken = list(islice(endless(make(kind, labels, units, m)), stop + 5))
    broken = make(kind, labels, units, m)
    first = list(islice(endless(broken), stop))
    resumed = make(kind, labels, units, m)
    resumed.load_state_dict(broken.state_dict())
    assert first + list(islice(endless(resumed), 5)) == unbroken
    # What a trainer with workers does: it knows how many batches it has used, nothing else.
    counted = make(kind, labels, units, m)
    counted.load_state_dict({"epoch": 0, "position": stop})
    assert counted.state_dict() == broken.state_dict()


@settings(max_examples=40)
@given(data(), st.integers(1, 2), st.integers(1, 2), instances)
def test_ranks_joined_are_the_single_batch(kind, labels, per_rank, world, m):
    single = make(kind, labels, per_rank * world, m)
    ranks = [make(kind, labels, per_rank * world, m, rank=r, world_size=world) for r in range(world)]
    size = single.unit_size
    for batch, *parts in zip(single, *ranks, strict=True):
        joined = np.stack([np.reshape(part, (per_rank, size)) for part in parts], axis=1)
        assert joined.reshape(-1).tolist() == batch


def test_seeds_and_epochs_differ(kind):
    labels = np.repeat(np.arange(20), 8)
    drawn = []
    for seed in (0, 1):
        sampler = make(kind, labels, 4, 4, seed=seed)
        drawn += [list(sampler) for _ in range(3)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])


def test_set_epoch_keeps_the_position_within_the_epoch(kind):
    sampler = make(kind, np.repeat(np.arange(8), 8), 2, 2)
    sampler.load_state_dict({"epoch": 2, "position": 1})
    sampler.set_epoch(2)
    assert sampler.state_dict() == {"epoch": 2, "position": 1}
    sampler.set_epoch(5)
    assert sampler.state_dict() == {"epoch": 5, "position": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "at least 1"),
        ({"units": 2, "seed": -1}, "at least 0"),
        ({"units": 2, "rank": 2, "world_size": 2}, "rank=2"),
        ({"units": 3, "world_size": 2}, "multiple of 2, for example 4"),
        ({"units": 2, "labels": np.array([0.0, 1.0])}, "integers"),
        ({"units": 2, "labels": np.zeros((2, 2), dtype=int)}, "one-dimensional"),
    ],
)
def test_wrong_arguments(kind, arguments, message):
    settings = {"labels": np.repeat(np.arange(8), 4), "m": 2, **arguments}
    with pytest.raises(InputError, match=message):
        make(kind, **settings)

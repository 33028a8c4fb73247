"""Batches of P classes x M instances, checked slot by slot."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.data import MPerClassSampler
from deepmetric.errors import InputError


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    labels = np.repeat(np.arange(len(sizes)) * 3 - 5, sizes)  # neither from 0 nor without gaps
    labels = draw(st.permutations(labels.tolist()))
    p = draw(st.integers(1, len(sizes)))
    m = draw(st.integers(1, 5))
    return np.array(labels), p, m, draw(st.integers(0, 3)), draw(st.integers(0, 4))


def epoch_of(labels, p, m, seed, epoch, **ranks) -> list[list[int]]:
    sampler = MPerClassSampler(labels, p, m, seed=seed, **ranks)
    sampler.set_epoch(epoch)
    return list(sampler)


@given(cases())
def test_shape_of_an_epoch(case):
    labels, p, m, _, _ = case
    batches = epoch_of(*case)
    classes = len(np.unique(labels))
    assert len(batches) == max(len(labels) // (p * m), -(-classes // p))
    assert len(batches) == len(MPerClassSampler(labels, p, m))
    for batch in batches:
        assert all(isinstance(i, int) for i in batch)
        assert sorted(Counter(labels[batch].tolist()).values()) == [m] * p  # P distinct classes, M each


@given(cases())
def test_every_class_is_visited_before_one_returns(case):
    labels, _, m, _, _ = case
    visits = [labels[batch[k]] for batch in epoch_of(*case) for k in range(0, len(batch), m)]
    classes = len(np.unique(labels))
    for start in range(0, len(visits), classes):
        deck = visits[start : start + classes]
        assert len(set(deck)) == len(deck)


@given(cases())
def test_every_item_of_a_class_is_seen_before_one_returns(case):
    labels = case[0]
    seen: dict[int, list[int]] = {}
    for batch in epoch_of(*case):
        for i in batch:
            seen.setdefault(int(labels[i]), []).append(i)
    for label, items in seen.items():
        n = int((labels == label).sum())
        for start in range(0, len(items), n):
            lap = items[start : start + n]
            assert len(set(lap)) == len(lap)


@given(cases())
def test_short_classes_give_their_items_in_rounds(case):
    labels, _, m, _, _ = case
    for batch in epoch_of(*case):
        for label in set(labels[batch].tolist()):
            n = int((labels == label).sum())
            times = Counter(i for i in batch if labels[i] == label)
            assert set(times.values()) <= {m // n, -(-m // n)}
            assert len(times) == min(n, m)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_ranks_joined_are_the_single_batch(per_rank, world, m, epoch):
    labels = np.repeat(np.arange(13), [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6])
    p = per_rank * world
    if p > 13:
        return
    single = epoch_of(labels, p, m, 0, epoch)
    ranks = [epoch_of(labels, p, m, 0, epoch, rank=r, world_size=world) for r in range(world)]
    for batch, *parts in zip(single, *ranks, strict=True):
        assert sorted(i for part in parts for i in part) == sorted(batch)
        classes = [set(labels[part].tolist()) for part in parts]
        assert sum(map(len, classes)) == p  # no class is on two ranks
        joined = np.stack([np.reshape(part, (per_rank, m)) for part in parts], axis=1)
        assert joined.reshape(-1).tolist() == batch


def test_labels_may_be_a_tensor_or_a_list():
    labels = np.repeat(np.arange(4), 3)
    expected = list(MPerClassSampler(labels, 2, 2))
    assert list(MPerClassSampler(torch.from_numpy(labels), 2, 2)) == expected
    assert list(MPerClassSampler(labels.tolist(), 2, 2)) == expected


def test_a_million_items():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 100_000, 1_000_000)
    batches = np.array(epoch_of(labels, 64, 4, 0, 0))
    assert batches.shape == (1_000_000 // 256, 256)
    classes = labels[batches].reshape(-1, 64, 4)
    assert (classes == classes[:, :, :1]).all()
    assert (np.diff(np.sort(classes[:, :, 0], axis=1), axis=1) > 0).all()
    visits = classes[:, :, 0].reshape(-1)
    present = len(np.unique(labels))
    for start in range(0, len(visits), present):
        deck = visits[start : start + present]
        assert len(np.unique(deck)) == len(deck)


@settings(max_examples=20)
@given(st.integers(2, 5), st.integers(200, 400))
def test_few_classes_and_many_decks(classes, n):
    labels = np.arange(n) % classes
    for p in range(1, classes + 1):
        for batch in epoch_of(labels, p, 1, 0, 0):
            assert len(set(labels[batch].tolist())) == p


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0, 1, 1], 3, 2), "at most 2"),
        (([0, 0, 1, 1], 0, 2), "at least 1"),
        (([0, 0, 1, 1], 2, 0), "at least 1"),
        (([0, 0, 1, 1], 2, 1, -1), "at least 0"),
        (([0, 0, 1, 1], 2, 1, 0, 2, 2), "rank=2"),
        (([0, 1, 2], 3, 1, 0, 0, 2), "multiple of 2, for example 4"),
        (([0.0, 1.0], 2, 1), "integers"),
        (([[0], [1]], 2, 1), "one-dimensional"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        MPerClassSampler(*arguments)

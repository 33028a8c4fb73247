"""The diets of the samplers beside MPerClassSampler, batch by batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.data import (
    AnchorNeighbourSampler,
    FolderDataset,
    HierarchicalSampler,
    ShuffledSampler,
    TripletSampler,
)
from deepmetric.errors import InputError

seeds = st.integers(0, 2**16)


@given(st.integers(1, 40), st.integers(1, 40), seeds)
def test_shuffled_shows_no_item_twice_an_epoch(items, batch, seed):
    labels = np.zeros(items, dtype=int)
    if batch > items:
        with pytest.raises(InputError, match=f"at most {items}"):
            ShuffledSampler(labels, batch)
        return
    seen = [i for chosen in ShuffledSampler(labels, batch, seed=seed) for i in chosen]
    assert len(set(seen)) == len(seen) == items // batch * batch


@st.composite
def hierarchies(draw):
    """(category of each class, labels): 2 to 4 categories of 1 to 6 classes of 1 to 5 items."""
    classes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    category_of = np.repeat(np.arange(len(classes)), classes)
    sizes = draw(st.lists(st.integers(1, 5), min_size=len(category_of), max_size=len(category_of)))
    return category_of, np.repeat(np.arange(len(category_of)), sizes)


@given(hierarchies(), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.booleans(), seeds)
def test_hierarchical_batches_have_their_shape(hierarchy, each, per_category, m, weighted, seed):
    category_of, labels = hierarchy
    sampler = HierarchicalSampler(
        labels, category_of[labels], each, per_category, m, weight_categories=weighted, seed=seed
    )
    for batch in sampler:
        classes = labels[batch].reshape(-1, m)
        assert (classes == classes[:, :1]).all()
        categories = category_of[classes[:, 0]].reshape(each, per_category)
        assert (categories == categories[:, :1]).all()
        assert len(set(categories[:, 0])) == each
        for category, slots in zip(categories[:, 0], classes[:, 0].reshape(each, per_category)):
            # distinct classes, or all of the category's in rounds
            assert len(set(slots)) == min(per_category, (category_of == category).sum())


def test_categories_are_visited_equally_or_by_their_classes():
    category_of = np.repeat([0, 1, 2], [30, 8, 2])
    labels = np.repeat(np.arange(40), 100)

    def visits(weighted: bool) -> Counter:
        sampler = HierarchicalSampler(labels, category_of[labels], 1, 2, 2, weight_categories=weighted)
        return Counter(int(category_of[labels[batch[0]]]) for batch in sampler)

    equal, weighted = visits(False), visits(True)
    assert max(equal.values()) - min(equal.values()) <= 1
    assert sum(weighted.values()) == 1000
    # 750, 200 and 50 expected; five standard deviations
    assert abs(weighted[0] - 750) < 70
    assert abs(weighted[1] - 200) < 65
    assert abs(weighted[2] - 50) < 35


def test_hierarchical_takes_names_and_refuses_what_is_no_hierarchy(tmp_path):
    labels = np.repeat(np.arange(4), 3)
    names = np.repeat(["bags", "bags", "shoes", "shoes"], 3)
    for batch in HierarchicalSampler(labels, names, 1, 2, 2):
        assert len(set(names[batch])) == 1
    with pytest.raises(InputError, match="data has none"):
        HierarchicalSampler(labels).categories = None
    with pytest.raises(InputError, match="no categories yet"):
        next(iter(HierarchicalSampler(labels)))
    with pytest.raises(InputError, match="at most 2"):
        HierarchicalSampler(labels, names, 3, 1, 2)
    with pytest.raises(InputError, match="label 1 has items in the categories bags and shoes"):
        HierarchicalSampler(labels, ["bags"] * 5 + ["shoes"] * 7, 1, 2, 2)
    with pytest.raises(InputError, match="3 categories for 12 items"):
        HierarchicalSampler(labels, names[:3], 1, 2, 2)


def test_nested_folders_are_categories(tmp_path):
    from PIL import Image

    for name in ("latin/a", "latin/b", "greek/alpha", "greek/beta"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    data = FolderDataset(tmp_path)
    assert data.categories is not None
    assert data.categories.tolist() == [name.split("/")[0] for name in data.ids]
    Image.new("RGB", (4, 4)).save(tmp_path / "latin" / "0.png")  # now latin is a class too
    assert FolderDataset(tmp_path).categories is None


@settings(max_examples=50)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), seeds)
def test_anchors_come_with_their_nearest_free_classes(anchors, per_anchor, t, more, seed):
    classes = anchors * per_anchor + more
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes) * 3, rng.integers(1, 5, classes))
    sampler = AnchorNeighbourSampler(labels, anchors, per_anchor, t, seed=seed)
    near = rng.random((classes, classes))
    np.fill_diagonal(near, 2)
    sampler.neighbours = near.argsort(axis=1)[:, : max(sampler.neighbours_needed, 1)]
    seen = []
    for batch in sampler:
        slots = labels[batch].reshape(anchors, per_anchor, t) // 3
        assert (slots == slots[:, :, :1]).all()
        slots = slots[:, :, 0]
        assert len(set(slots.ravel())) == anchors * per_anchor
        taken = set(slots[:, 0])
        for anchor, *others in slots.tolist():
            expected = [c for c in near[anchor].argsort().tolist() if c not in taken][: per_anchor - 1]
            assert others == expected
            taken |= set(others)
        seen += slots[:, 0].tolist()
    assert len(set(seen[:classes])) == len(seen[:classes])


def test_anchor_neighbours_must_be_set_and_fit():
    sampler = AnchorNeighbourSampler(np.repeat(np.arange(6), 2), 2, 2, 2)
    with pytest.raises(InputError, match="no neighbours yet"):
        next(iter(sampler))
    with pytest.raises(InputError, match=r"\[6, 3 or more\], got \[6, 2\]"):
        sampler.neighbours = np.zeros((6, 2), dtype=int)
    with pytest.raises(InputError, match="need 8 classes"):
        AnchorNeighbourSampler(np.repeat(np.arange(6), 2), 2, 4, 2)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(1, 6), seeds)
def test_triplets_are_triplets_and_every_item_is_an_anchor(sizes, triplets, seed):
    sizes[0] = max(sizes[0], 2)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    anchors = []
    for batch in TripletSampler(labels, triplets, seed=seed):
        a, p, n = np.reshape(batch, (-1, 3)).T
        assert (labels[a] == labels[p]).all()
        assert (a != p).all()
        assert (labels[a] != labels[n]).all()
        anchors += a.tolist()
    possible = sum(size for size in sizes if size > 1)
    assert len(set(anchors)) == min(len(anchors), possible)


def test_random_triplets_reach_all_items_evenly():
    labels = np.repeat(np.arange(3), [2, 4, 6])
    sampler = TripletSampler(labels, 12)
    counts = np.zeros((12, 2, 12))
    for _ in range(1500):
        for batch in sampler:
            for a, p, n in np.reshape(batch, (-1, 3)):
                counts[a, 0, p] += 1
                counts[a, 1, n] += 1
    same = labels[:, None] == labels
    for side, allowed in ((0, same & ~np.eye(12, dtype=bool)), (1, ~same)):
        expected = 1500 * allowed / allowed.sum(1, keepdims=True)
        assert (counts[:, side][~allowed] == 0).all()
        assert (np.abs(counts[:, side] - expected) <= 5 * np.sqrt(expected)).all()


def test_candidates_are_used_and_where_there_are_none_others_of_the_right_class():
    labels = np.repeat(np.arange(3), 3)
    sampler = TripletSampler(labels, 9)
    sampler.positives = np.array([[1, -1]] + [[-1, -1]] * 8)
    sampler.negatives = np.array([[-1, 4, 7]] + [[-1, -1, -1]] * 8)
    drawn = set()
    for _ in range(40):
        for a, p, n in np.reshape(next(iter(sampler)), (-1, 3)).tolist():
            assert labels[p] == labels[a] != labels[n]
            if a == 0:
                assert p == 1
                drawn.add(n)
    assert drawn == {4, 7}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("positives", 3, "another class"),
        ("positives", 0, "itself"),
        ("negatives", 1, "of its class"),
        ("negatives", 9, "positions"),
    ],
)
def test_wrong_candidates_are_refused(name, row, message):
    sampler = TripletSampler(np.repeat(np.arange(3), 3), 2)
    table = np.full((9, 1), -1)
    table[0] = row
    with pytest.raises(InputError, match=message):
        setattr(sampler, name, table)


def test_data_without_triplets_is_refused():
    for labels in ([0, 0, 0], [0, 1, 2]):
        with pytest.raises(InputError, match="two classes, one of them with two items"):
            TripletSampler(labels, 1)

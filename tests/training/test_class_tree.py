import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.training import build_class_tree, class_means, nearest_classes
from deepmetric.training.class_tree import ClassMeans


def levels(tree):
    everyone = torch.arange(len(tree.labels))
    return tree.merge_levels(everyone, everyone).tolist()


class ByHand(ClassMeans):
    """Classes given by the matrix of their distances."""

    def distances(self, rows):
        return self.means[rows].copy()


def by_hand(distances, spread):
    d = np.array(distances, dtype=float)
    return ByHand(np.arange(len(d)), d + d.T, np.array(spread, dtype=float))


# d_0 = 0 and L = 4 give the thresholds 0, 1, 2, 3, 4. Classes on a line: 0 - 0.9 - 0.9 - 0.9 apart, so that
# neighbours chain, but 0 and 3 are 2.7 apart.
CHAIN = by_hand([[0, 0.9, 1.8, 2.7], [0, 0, 0.9, 1.8], [0, 0, 0, 0.9], [0, 0, 0, 0]], [0, 0, 0, 0])


def test_single_linkage_chains_and_average_does_not():
    assert levels(build_class_tree(CHAIN, 4, "single")) == [
        [0, 1, 1, 1],
        [1, 0, 1, 1],
        [1, 1, 0, 1],
        [1, 1, 1, 0],
    ]
    # {0, 1} and {2, 3} at 0.9, their means 1.8 apart
    pairs = [[0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]]
    assert levels(build_class_tree(CHAIN, 4, "average")) == pairs
    # ... and their furthest members 2.7
    assert levels(build_class_tree(CHAIN, 4, "complete")) == [
        [0, 1, 3, 3],
        [1, 0, 3, 3],
        [3, 3, 0, 1],
        [3, 3, 1, 0],
    ]


def test_thresholds_levels_and_the_root():
    # spread 0.8 on the mean: thresholds 0.8, 1.6, 2.4, 3.2, 4
    classes = by_hand([[0, 0.5, 3.9], [0, 0, 3.9], [0, 0, 0]], [0.4, 1.2, 0.8])
    tree = build_class_tree(classes, 4)
    assert tree.thresholds.tolist() == pytest.approx([0.8, 1.6, 2.4, 3.2, 4.0])
    assert levels(tree) == [[0, 1, 4], [1, 0, 4], [4, 4, 0]]
    # below the threshold, not at it
    at = by_hand([[0, 1.0], [0, 0]], [0, 0])
    assert levels(build_class_tree(at, 4)) == [[0, 2], [2, 0]]
    # all are one at the last level, whatever their distance
    assert levels(build_class_tree(by_hand([[0, 4.0], [0, 0]], [0, 0]), 1)) == [[0, 1], [1, 0]]


@settings(max_examples=40, deadline=None)  # scipy is imported in the first
@given(st.integers(2, 7), st.integers(0, 2**16), st.integers(1, 40))
def test_distances_and_spreads_equal_those_of_all_pairs(c, seed, block):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(c), rng.integers(0, c, 12)]) * 3 + 1
    x = rng.normal(size=(len(labels), 3)).astype(np.float32)
    classes = class_means(x, labels)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    squared = np.square(unit[:, None] - unit).sum(2)
    assert classes.labels.tolist() == sorted(set(labels.tolist()))
    of = [np.flatnonzero(labels == label) for label in classes.labels]
    expected = np.array([[squared[np.ix_(p, q)].mean() for q in of] for p in of])
    apart = ~np.eye(c, dtype=bool)
    found = classes.distances(slice(0, c))
    np.testing.assert_allclose(found[apart], expected[apart], atol=1e-6)
    own = [squared[np.ix_(p, p)].sum() / (len(p) * (len(p) - 1)) if len(p) > 1 else None for p in of]
    mean = np.mean([s for s in own if s is not None] or [0])
    np.testing.assert_allclose(classes.spread, [mean if s is None else s for s in own], atol=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepmetric.training.class_tree.BLOCK", block)
        near = nearest_classes(classes, c - 1)
        blocked = build_class_tree(classes, 5)
    masked = np.where(apart, found, np.inf)
    np.testing.assert_allclose(
        np.take_along_axis(masked, near, axis=1), np.sort(masked, axis=1)[:, : c - 1], atol=1e-12
    )
    assert levels(blocked) == levels(build_class_tree(classes, 5))


def test_too_few_classes_are_refused():
    one = class_means(np.ones((3, 2), dtype=np.float32), np.zeros(3, dtype=int))
    with pytest.raises(InputError, match="two classes"):
        build_class_tree(one)
    with pytest.raises(InputError, match="2 nearest classes"):
        nearest_classes(one, 2)
    with pytest.raises(InputError, match="Did you mean 'average'"):
        build_class_tree(one, linkage="averge")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got \(3, 2\) and \(2,\)"):
        class_means(np.ones((3, 2), dtype=np.float32), np.zeros(2, dtype=int))

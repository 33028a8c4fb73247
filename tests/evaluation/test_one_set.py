"""A set among itself by half the products: the same ranks as with the set given as a gallery, and as sorting gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.evaluation import one_set, retrieval_metrics


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of items that were ranked by half the products."""
    calls: list[int] = []
    ranked = one_set._Found.search

    def search(self: one_set._Found, block_bytes: int) -> None:
        calls.append(len(self.items))
        ranked(self, block_bytes)

    monkeypatch.setattr(one_set._Found, "search", search)
    return calls


def among_themselves(x: torch.Tensor, labels: np.ndarray, **how) -> dict[str, np.ndarray]:
    return retrieval_metrics(x, labels, ks=(1, 3, 50), **how).per_query


def as_gallery(x: torch.Tensor, labels: np.ndarray, **how) -> dict[str, np.ndarray]:
    own = np.arange(len(x))
    return retrieval_metrics(x, labels, x.clone(), labels, self_index=own, ks=(1, 3, 50), **how).per_query


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    levels=st.sampled_from([2, 4, 1000]),
    similarity=st.sampled_from(["cosine", "dot"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    block=st.sampled_from([1, 2**9, 2**12, 2**14, 2**27]),
    seed=st.integers(0, 1000),
)
def test_equals_the_set_as_its_own_gallery(sizes, levels, similarity, dtype, block, seed) -> None:
    """With few levels many similarities are equal, and items are exact copies of one another."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = torch.from_numpy(rng.integers(-levels, levels + 1, size=(len(labels), 4))).to(dtype)
    got = among_themselves(x, labels, similarity=similarity, block_bytes=block)
    for name, want in as_gallery(x, labels, similarity=similarity).items():
        np.testing.assert_allclose(got[name], want, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("block", [2**10, 2**15, 2**27])
@pytest.mark.parametrize("per_class", [2, 5, 60])
def test_equals_sorting(per_class: int, block: int, slow_metrics, counted: list[int]) -> None:
    rng = np.random.default_rng(per_class)
    labels = rng.permutation(np.append(np.arange(600) // per_class, [1000, 1001, 1002]))  # three single items
    x = rng.normal(size=(1003, 16))[labels] + 1.5 * rng.normal(size=(603, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    want = slow_metrics(x @ x.T, labels, labels, np.arange(603), (1, 10))
    got = retrieval_metrics(x, labels, ks=(1, 10), block_bytes=block)
    assert counted == [603]
    for name, column in want.items():
        np.testing.assert_allclose(got.per_query[name], column, atol=1e-12)


def test_larger_classes_and_other_similarities_take_the_way_of_two_sets(counted: list[int]) -> None:
    x = torch.randn(300, 4)
    labels = np.arange(300) // (one_set.MOST + 2)
    among_themselves(x, labels)
    among_themselves(x, np.arange(300) // 3, similarity="euclidean")
    as_gallery(x, np.arange(300) // 3)
    assert not counted


def test_a_collapsed_model_scores_nothing(counted: list[int]) -> None:
    """Of equal similarities the negatives come first, however the product rounds them."""
    x = torch.randn(1, 300).expand(2000, -1)
    m = retrieval_metrics(x, np.arange(2000) // 4, ks=(1, 1996, 1997))
    assert counted == [2000]
    assert (m["recall@1"], m["recall@1996"], m["recall@1997"], m["map@r"]) == (0, 0, 1, 0)

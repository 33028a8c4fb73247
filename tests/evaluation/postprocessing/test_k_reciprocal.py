"""The sparse form against sets and loops, as the paper describes them."""

import tracemalloc

import numpy as np
import pytest
import torch

from deepmetric.errors import InputError
from deepmetric.evaluation import retrieval_metrics
from deepmetric.evaluation.postprocessing import KReciprocal
from deepmetric.evaluation.postprocessing.k_reciprocal import encode, shared_weight


def points(seed: int, classes: int = 6, each: int = 7, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    x = rng.standard_normal((classes, d))[labels] + 0.7 * rng.standard_normal((len(labels), d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)), labels


def by_sets(x: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    s = x @ x.T
    ranked = [[i, *(j for j in np.argsort(-s[i]) if j != i)] for i in range(len(x))]

    def reciprocal(p: int, k: int) -> set[int]:
        return {g for g in ranked[p][: k + 1] if p in ranked[g][: k + 1]}

    v = np.zeros_like(s)
    for p in range(len(x)):
        first = reciprocal(p, k1)
        whole = set(first)
        for q in first:
            more = reciprocal(q, round(k1 / 2))
            if len(more & first) >= 2 / 3 * len(more):
                whole |= more
        for g in whole:
            v[p, g] = np.exp(s[p, g] - 1)
        v[p] /= v[p].sum()
    v = np.array([v[ranked[p][:k2]].mean(axis=0) for p in range(len(x))])
    jaccard = np.array([[np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in v] for a in v])
    return (1 - weight) * jaccard + weight * s


@pytest.mark.parametrize(("k1", "k2", "weight"), [(6, 3, 0.3), (5, 1, 0.0), (10, 11, 0.8), (1, 1, 0.5)])
def test_similarity_equals_sets(k1: int, k2: int, weight: float) -> None:
    x, _ = points(1)
    whole = torch.from_numpy(x).float()
    want = by_sets(x, k1, k2, weight)

    def similarity(query: torch.Tensor, gallery: torch.Tensor | None) -> np.ndarray:
        space = KReciprocal(k1, k2, weight).prepare(query, gallery)
        out = torch.empty(len(query) * len(query if gallery is None else gallery))
        return space.similarities(torch.arange(len(query)), out).T.numpy()

    np.testing.assert_allclose(similarity(whole, None), want, atol=1e-5)
    # Queries and a gallery: neighbours among both together.
    np.testing.assert_allclose(similarity(whole[:10], whole[10:]), want[:10, 10:], atol=1e-5)


def test_finds_more_of_a_class() -> None:
    x, labels = points(3, classes=20, each=12, d=16)
    plain = retrieval_metrics(x, labels)
    again = retrieval_metrics(x, labels, similarity=KReciprocal(k1=10, k2=3))
    assert again["map@r"] > plain["map@r"] + 0.02
    assert again["queries"] == plain["queries"]


def test_weight_one_is_the_plain_ranking() -> None:
    x, labels = points(4)
    x = x.astype(np.float32)
    plain, again = (
        retrieval_metrics(x, labels, similarity=how) for how in ("cosine", KReciprocal(5, 2, 1.0))
    )
    assert again == pytest.approx(plain)


def test_blocks_do_not_matter() -> None:
    x, labels = points(5, each=11)
    whole = retrieval_metrics(x, labels, similarity=KReciprocal(8, 3))
    assert retrieval_metrics(x, labels, similarity=KReciprocal(8, 3), block_bytes=1) == pytest.approx(whole)


@pytest.mark.parametrize("wrong", [{"k1": 0}, {"k2": 0}, {"k1": 3, "k2": 5}, {"weight": 1.5}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(InputError, match="KReciprocal"):
        KReciprocal(**wrong)


def test_too_few_items() -> None:
    with pytest.raises(InputError, match="more than 20"):
        retrieval_metrics(np.eye(4), [0, 0, 1, 1], similarity=KReciprocal())


def test_an_item_that_is_query_and_gallery_takes_part_once() -> None:
    x, labels = points(3, classes=20, each=12, d=16)
    how = KReciprocal(k1=10, k2=3)
    order = np.random.default_rng(0).permutation(len(x))
    place = np.argsort(order)  # of each item in the gallery
    among = retrieval_metrics(x, labels, similarity=how)
    apart = retrieval_metrics(x, labels, x[order], labels[order], self_index=place, similarity=how)
    assert apart == pytest.approx(among)
    # The first ten are queries alone, the last ten in the gallery alone.
    s = by_sets(x, 10, 3, 0.3)
    space = how.prepare(
        *(torch.from_numpy(part) for part in (x[:-10], x[10:])), torch.arange(-10, 220).clamp_min(-1)
    )
    out = space.similarities(torch.arange(230), torch.empty(230 * 230, dtype=torch.float64))
    np.testing.assert_allclose(out.T, s[:-10, 10:], atol=1e-5)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = points(5, each=11)
    whole = retrieval_metrics(x, labels, similarity=KReciprocal(8, 3))
    monkeypatch.setattr("deepmetric.evaluation.postprocessing.k_reciprocal.PIECE", 100)
    assert retrieval_metrics(x, labels, similarity=KReciprocal(8, 3)) == whole


def test_hubs_take_no_memory() -> None:
    """Where many items have the same neighbours, every query meets every gallery item."""
    encoded = encode(np.full((1200, 4), 0.5, dtype=np.float32), 20, 6)
    tracemalloc.start()
    shared_weight(encoded, encoded.tocsc())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * 2**20

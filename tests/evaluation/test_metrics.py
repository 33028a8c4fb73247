"""Retrieval metrics against their plain definition, on data full of ties, copies and odd classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.evaluation import retrieval_metrics

KS = (1, 2, 3, 10, 1000)

pytestmark = pytest.mark.usefixtures("any_way")


def exact_similarity(q: np.ndarray, g: np.ndarray, similarity: str) -> np.ndarray:
    """Of integer vectors, in exact arithmetic (squared cosine with its sign: the same order)."""
    dot = q.astype(np.int64) @ g.T.astype(np.int64)
    q2, g2 = (q.astype(np.int64) ** 2).sum(1), (g.astype(np.int64) ** 2).sum(1)
    if similarity == "dot":
        return dot
    if similarity == "euclidean":
        return 2 * dot - q2[:, None] - g2
    return dot / np.maximum(q2[:, None] * g2, 1) ** 0.5


@st.composite
def sets(draw: st.DrawFn) -> dict:
    """Small-integer embeddings (many exact ties and copies), few classes, some of them without a partner."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m, d = draw(st.integers(1, 25)), draw(st.integers(1, 300)), draw(st.integers(1, 5))
    classes = draw(st.integers(1, 12))
    similarity = draw(st.sampled_from(["cosine", "dot", "euclidean"]))
    values = (
        [-1, 1] if similarity == "cosine" else [-2, -1, 0, 1]
    )  # equal norms keep the ties of cosines exact
    q, g = rng.choice(values, (n, d)), rng.choice(values, (m, d))
    q_labels, g_labels = rng.integers(0, classes, n) * 7 - 20, rng.integers(0, classes, m) * 7 - 20
    form = draw(st.sampled_from(["same", "apart", "inside"]))
    own = np.full(n, -1)
    if form == "same":
        g, g_labels, own = q, q_labels, np.arange(n)
    if form == "inside":
        own = rng.integers(-1, m, n)
        q[own >= 0], q_labels[own >= 0] = g[own[own >= 0]], g_labels[own[own >= 0]]
    return {
        "q": q,
        "q_labels": q_labels,
        "g": g,
        "g_labels": g_labels,
        "own": own,
        "form": form,
        "similarity": similarity,
        "dtype": draw(st.sampled_from([np.float32, np.float64])),
        "block_bytes": draw(st.sampled_from([1, 2**26])),
    }


def measure(case: dict, **changes):
    case = case | changes
    gallery = ()
    if case["form"] != "same":
        gallery = (case["g"].astype(case["dtype"]), case["g_labels"])
    return retrieval_metrics(
        case["q"].astype(case["dtype"]),
        case["q_labels"],
        *gallery,
        self_index=case["own"] if case["form"] == "inside" else None,
        ks=KS,
        similarity=case["similarity"],
        block_bytes=case["block_bytes"],
    )


@settings(max_examples=150, deadline=None)
@given(case=sets())
def test_equals_the_definition(case, slow_metrics) -> None:
    got = measure(case)
    exact = exact_similarity(case["q"], case["g"], case["similarity"])
    want = slow_metrics(exact, case["q_labels"], case["g_labels"], case["own"], KS)
    assert set(got.per_query) == set(want)
    for name, column in want.items():
        np.testing.assert_allclose(got.per_query[name], column, atol=1e-12, err_msg=name)
        mean = np.nanmean(column) if not np.isnan(column).all() else np.nan
        assert got[name] == pytest.approx(mean, abs=1e-12, nan_ok=True)
    assert got["queries"] == len(case["q"])
    assert got["queries_without_positive"] == np.isnan(want["mrr"]).sum()


@settings(max_examples=30, deadline=None)
@given(case=sets(), seed=st.integers(0, 1000))
def test_order_of_the_gallery_and_of_the_queries_does_not_matter(case, seed) -> None:
    rng = np.random.default_rng(seed)
    q, g = rng.permutation(len(case["q"])), rng.permutation(len(case["g"]))
    if case["form"] == "same":
        changes = {"q": case["q"][q], "q_labels": case["q_labels"][q]}
    else:
        place = np.append(np.argsort(g), -1)
        changes = {
            "q": case["q"][q],
            "q_labels": case["q_labels"][q],
            "g": case["g"][g],
            "g_labels": case["g_labels"][g],
            "own": place[case["own"]][q],
        }
    before, after = measure(case), measure(case, **changes)
    for name, column in before.per_query.items():
        np.testing.assert_allclose(column[q], after.per_query[name], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("per_class", [3, 40])
def test_equals_the_definition_without_ties(dtype, similarity, per_class, slow_metrics) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(400) // per_class)
    x = (rng.normal(size=(labels.max() + 1, 16))[labels] + rng.normal(size=(400, 16))).astype(dtype)
    exact = x.astype(float)
    if similarity == "cosine":
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    s = exact @ exact.T
    if similarity == "euclidean":
        s = -((exact[:, None] - exact) ** 2).sum(-1)
    want = slow_metrics(s, labels, labels, np.arange(400), KS)
    got = retrieval_metrics(x, labels, ks=KS, similarity=similarity)
    for name, column in want.items():
        np.testing.assert_allclose(got.per_query[name], column, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("d", [3, 128, 2048])
def test_a_collapsed_model_scores_nothing(d: int) -> None:
    """All embeddings equal: a matrix product may give copies similarities that differ in the last bit."""
    labels = np.arange(997) // 4
    point = np.random.default_rng(d).normal(size=d).astype(np.float32)
    scores = retrieval_metrics(np.tile(point, (997, 1)), labels, ks=(1, 100))
    assert scores["recall@1"] == scores["recall@100"] == scores["r_precision"] == scores["map@r"] == 0
    # The last class has a single item; of the others each query has 993 negatives before its first positive.
    assert scores["mrr"] == pytest.approx(1 / 994)
    assert scores["queries_without_positive"] == 1


def test_scaled_copies_are_ties_in_cosine() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(50, 64)).astype(np.float32)
    x = np.concatenate([base, base * 3.7])  # each item's copy has another label, its positive is far away
    labels = np.concatenate([np.arange(50), (np.arange(50) + 1) % 50])
    assert retrieval_metrics(x, labels)["precision@1"] == 0


def test_extreme_scales() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) // 2
    x = rng.normal(size=(20, 8))[labels] + 0.05 * rng.normal(size=(40, 8))
    want = retrieval_metrics(x, labels)
    for scale in (1e-30, 1e30):
        assert retrieval_metrics((x * scale).astype(np.float32), labels) == want
    shifted = retrieval_metrics(x + 1e5, labels, similarity="euclidean")
    assert shifted == retrieval_metrics(x, labels, similarity="euclidean")


def test_one_far_item_changes_no_distance() -> None:
    """Rounding is judged by a query's own neighbourhood, not by the longest vector of the gallery."""
    rng = np.random.default_rng(0)
    labels = np.append(np.arange(40) // 2, 99)
    x = rng.normal(size=(20, 8))[labels[:-1]] + 0.01 * rng.normal(size=(40, 8))
    x = np.concatenate([x, np.full((1, 8), 1e6)])
    assert retrieval_metrics(x, labels, similarity="euclidean")["map@r"] == 1


def test_labels_of_any_size_and_strings() -> None:
    x = np.eye(4)[[0, 0, 1, 1]]
    for labels in (
        [2**62, 2**62, 2**62 + 1, 2**62 + 1],
        np.array([2**64 - 1, 2**64 - 1, 2**64 - 2, 2**64 - 2], dtype=np.uint64),
        [-5, -5, 3, 3],
        ["ant", "ant", "bee", "bee"],
        np.array(["ant", "ant", "bee", "bee"], dtype=object),
        torch.tensor([1, 1, 0, 0], dtype=torch.int32),
    ):
        assert retrieval_metrics(x, labels)["recall@1"] == 1
        assert retrieval_metrics(x, labels, x[::-1].copy(), labels)["recall@1"] == 0
    assert retrieval_metrics(x, np.array([7, 7, 8, 8]), x, np.array([7, 7, 8, 8], np.uint64))["recall@1"] == 1


def test_half_precision_and_integers_are_computed_in_float32() -> None:
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) // 3
    half = x.half()
    assert retrieval_metrics(half, labels) == retrieval_metrics(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieval_metrics(x, labels) == retrieval_metrics(x.clone().requires_grad_(), labels)
    torch.set_float32_matmul_precision("medium")
    try:
        coarse = retrieval_metrics(x, labels)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert coarse == retrieval_metrics(x, labels)


X, Y = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y[:3]), {}, r"`query_labels` .* row of `query`: expected shape \(4,\), got \(3,\)"),
        ((X, np.eye(4, dtype=int)), {}, r"argmax"),
        ((X, Y.astype(float)), {}, r"whole numbers or strings, got float64"),
        ((X[0], Y), {}, r"one embedding a row, got shape \(4,\)"),
        ((X[:0], Y[:0]), {}, r"got shape \(0, 4\)"),
        ((X * 1j, Y), {}, r"real numbers"),
        ((X, Y, X[:, :3], Y), {}, r"4 columns and `gallery` 3"),
        ((X, Y, X), {}, r"needs `gallery_labels`"),
        ((X, Y, X[:0], Y[:0]), {}, r"`gallery` .* got shape"),
        ((X, Y, X, Y[:2]), {}, r"`gallery_labels` .* row of `gallery`"),
        ((X, Y, X, ["a", "a", "b", "b"]), {}, r"no two labels are equal"),
        ((X, Y, None, Y), {}, r"`gallery`, which is missing"),
        ((X, Y), {"ks": (0, 1)}, r"`ks` .* got \[0, 1\]"),
        ((X, Y), {"ks": (1.5,)}, r"`ks`"),
        ((X, Y), {"similarity": "cosin"}, r"Did you mean 'cosine'"),
        ((X, Y), {"bootstrap": -1}, r"`bootstrap` is -1"),
        ((X, Y), {"ids": ["a"]}, r"`ids` .* expected 4, got 1"),
        ((X, Y, X, Y), {"self_index": [0, 1, 2, 4]}, r"between -1 and 3"),
        ((X, Y, X, Y), {"self_index": [0, 1]}, r"must be 4 whole numbers"),
        ((X, Y, X, Y), {"self_index": np.ones(4, dtype=bool)}, r"must be 4 whole numbers, got torch.bool"),
        ((X.astype(str), Y), {}, r"`query` must hold real numbers, got <U"),
    ],
)
def test_wrong_input(arguments, options, message) -> None:
    with pytest.raises(InputError, match=message):
        retrieval_metrics(*arguments, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    x = np.eye(4)
    x[2, 1] = x[3, 0] = bad
    with pytest.raises(InputError, match=r"in 2 of 4 rows, the first in row 2 \(item 'c'\)"):
        retrieval_metrics(x, Y, ids=["a", "b", "c", "d"])
    with pytest.raises(InputError, match=r"`gallery` .* row 2"):
        retrieval_metrics(X, Y, x, Y)


def test_float64_stays_float64() -> None:
    """Neighbours that only float64 can tell apart."""
    x = np.array([[1, 0], [1, 2e-5], [1, 1e-5], [-1, 0]])
    labels = [0, 0, 1, 1]
    assert retrieval_metrics(x, labels).per_query["precision@1"][0] == 0
    labels = [0, 1, 0, 1]
    assert retrieval_metrics(x, labels, similarity="euclidean").per_query["precision@1"][0] == 1


@pytest.mark.parametrize("how", [np.flipud, lambda x: x.astype(">f4"), lambda x: x.astype(np.longdouble)])
def test_arrays_that_torch_does_not_take(how) -> None:
    x, labels = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), np.arange(20) // 2
    x.setflags(write=False)
    want = retrieval_metrics(np.array(how(x), dtype=np.float32), labels)
    assert retrieval_metrics(how(x), labels) == pytest.approx(want)

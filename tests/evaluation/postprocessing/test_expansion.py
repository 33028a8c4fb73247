import numpy as np
import pytest

from deepmetric.errors import InputError
from deepmetric.evaluation import retrieval_metrics
from deepmetric.evaluation.postprocessing import database_augmentation, query_expansion

rng = np.random.default_rng(0)
QUERY, GALLERY = rng.standard_normal((7, 5)), rng.standard_normal((30, 5))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_loop(query: np.ndarray, gallery: np.ndarray, k: int, alpha: float, own: np.ndarray) -> np.ndarray:
    out = []
    for q, itself in zip(unit(query), own):
        similar = unit(gallery) @ q
        order = [i for i in np.argsort(-similar) if i != itself][:k]
        out.append(q + sum(max(0, similar[i]) ** alpha * unit(gallery)[i] for i in order))
    return unit(np.array(out))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_of_a_gallery(k: int, alpha: float) -> None:
    want = by_loop(QUERY, GALLERY, k, alpha, np.full(7, -1))
    np.testing.assert_allclose(query_expansion(QUERY, GALLERY, k=k, alpha=alpha), want, atol=1e-5)


def test_queries_among_themselves_leave_themselves_out() -> None:
    want = by_loop(GALLERY, GALLERY, 3, 2.0, np.arange(30))
    np.testing.assert_allclose(query_expansion(GALLERY, k=3, alpha=2.0), want, atol=1e-5)
    np.testing.assert_allclose(database_augmentation(GALLERY, k=3, alpha=2.0), want, atol=1e-5)
    part = query_expansion(GALLERY[4:9], GALLERY, k=3, alpha=2.0, self_index=np.arange(4, 9))
    np.testing.assert_allclose(part, want[4:9], atol=1e-5)


def test_many_exact_copies() -> None:
    """The query's own row may stand behind its copies; still k others are added, never more."""
    same = np.tile(unit(np.ones((1, 4))), (9, 1))
    np.testing.assert_allclose(query_expansion(same, k=3), same, atol=1e-6)


def test_brings_a_lone_query_to_its_class() -> None:
    centres = unit(rng.standard_normal((20, 16)))
    labels = np.repeat(np.arange(20), 12)
    items = unit(unit(centres[labels]) + 0.35 * rng.standard_normal((240, 16)))
    plain = retrieval_metrics(items, labels)
    expanded = retrieval_metrics(
        query_expansion(items, k=4), labels, items, labels, self_index=np.arange(240)
    )
    assert expanded["map@r"] > plain["map@r"] + 0.02


@pytest.mark.parametrize(("options", "said"), [({"k": 0}, "1 to the"), ({"k": 31}, "30 gallery rows")])
def test_impossible_neighbours(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        query_expansion(QUERY, GALLERY, **options)


def test_rows_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match="one model must make both"):
        query_expansion(QUERY, GALLERY[:, :-1], k=1)
    with pytest.raises(InputError, match=r"`self_index` must be .* got shape \(2,\)"):
        query_expansion(QUERY, GALLERY, k=1, self_index=[0, 1])


def test_negative_alpha() -> None:
    with pytest.raises(InputError, match="alpha"):
        query_expansion(QUERY, GALLERY, alpha=-1)

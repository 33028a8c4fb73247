"""Clustering scores of embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from deepmetric.errors import InputError
from deepmetric.evaluation import cluster, retrieval_metrics


def blobs(noise: float, classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 20)
    return rng.normal(size=(classes, 32))[labels] + noise * rng.normal(size=(len(labels), 32)), labels


def test_from_separate_classes_to_noise() -> None:
    easy, hard, lost = (retrieval_metrics(*blobs(noise), clustering=True) for noise in (0.01, 2, 100))
    assert easy["nmi"] > 0.9
    assert easy["nmi"] > hard["nmi"] > lost["nmi"]
    assert lost["nmi"] > 0.05  # chance agreement, which AMI takes off
    assert lost["ami"] == pytest.approx(0, abs=0.05)


def test_is_deterministic_by_seed() -> None:
    x, labels = blobs(3)
    assert retrieval_metrics(x, labels, clustering=True) == retrieval_metrics(x, labels, clustering=True)
    assert (cluster(x, 8, seed=0) != cluster(x, 8, seed=1)).any()


def test_is_absent_unless_asked_for() -> None:
    assert "nmi" not in retrieval_metrics(*blobs(1))


def test_cosine_clusters_directions() -> None:
    x, labels = blobs(0.1)
    lengths = np.exp(3 * np.random.default_rng(1).normal(size=(len(x), 1)))
    by_direction = retrieval_metrics(x * lengths, labels, clustering=True)
    by_place = retrieval_metrics(x * lengths, labels, clustering=True, similarity="euclidean")
    assert by_direction["nmi"] > by_place["nmi"] + 0.1


def test_as_many_clusters_as_items(capfd: pytest.CaptureFixture[str]) -> None:
    x = np.eye(5, dtype=np.float32)
    scores = retrieval_metrics(x, np.arange(5), x, np.arange(5), clustering=True)
    assert scores["nmi"] == pytest.approx(1)
    assert capfd.readouterr() == ("", "")  # no warning of k-means about few points


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1e20, 1e30])
def test_scale_does_not_matter(scale: float, similarity: str) -> None:
    x, labels = blobs(0.5)
    want = retrieval_metrics(x, labels, similarity=similarity, clustering=True)["nmi"]
    for rows in (x, x.astype(np.float32)):
        scaled = retrieval_metrics(
            rows * rows.dtype.type(scale), labels, similarity=similarity, clustering=True
        )
        assert scaled["nmi"] == pytest.approx(want, abs=0.05)


@pytest.mark.parametrize(
    ("x", "k", "said"),
    [(np.full((4, 2), np.nan), 2, "NaN"), (np.eye(4), 5, "1 to 4"), (np.eye(4), 0, "1 to 4")],
)
def test_what_has_no_clusters(x: np.ndarray, k: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        cluster(x, k)

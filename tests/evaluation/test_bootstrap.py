"""Intervals by resampling classes."""

from __future__ import annotations

import numpy as np
import pytest

from deepmetric.evaluation import class_bootstrap, retrieval_metrics


def slow_bootstrap(values: np.ndarray, classes: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Classes drawn one by one, all their queries collected."""
    rng = np.random.default_rng(seed)
    groups = [values[classes == c] for c in np.unique(classes)]
    means = [
        np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean()
        for _ in range(resamples)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return low, high


def table(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(40), rng.integers(1, 30, 40))
    level = rng.uniform(0, 1, 40)[classes]  # classes differ: queries of one class are alike
    return (rng.uniform(size=len(classes)) < level).astype(float), classes


def test_agrees_with_drawing_classes_one_by_one() -> None:
    values, classes = table()
    low, high = class_bootstrap({"m": values}, classes, 20_000, seed=1)["m"]
    want_low, want_high = slow_bootstrap(values, classes, 5_000, seed=2)
    width = want_high - want_low
    assert low == pytest.approx(want_low, abs=0.04 * width)
    assert high == pytest.approx(want_high, abs=0.04 * width)


def test_is_wider_than_resampling_single_queries() -> None:
    values, classes = table()
    low, high = class_bootstrap({"m": values}, classes, 1000)["m"]
    single_low, single_high = class_bootstrap({"m": values}, np.arange(len(values)), 1000)["m"]
    assert high - low > 1.5 * (single_high - single_low)


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 samples of 30 classes, nearly 95 % of the intervals hold the mean of the population."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        level = rng.beta(2, 2, 30)
        classes = np.repeat(np.arange(30), 10)
        values = (rng.uniform(size=300) < level[classes]).astype(float)
        low, high = class_bootstrap({"m": values}, classes, 300, seed=trial)["m"]
        covered += low <= 0.5 <= high
    assert 175 <= covered <= 199


def test_seed_and_unanswerable_queries() -> None:
    values, classes = table()
    values[classes == 3] = np.nan
    first = class_bootstrap({"m": values}, classes, 200, seed=5)
    assert first == class_bootstrap({"m": values}, classes, 200, seed=5)
    assert first != class_bootstrap({"m": values}, classes, 200, seed=6)
    kept = classes != 3
    assert first == class_bootstrap({"m": values[kept]}, classes[kept], 200, seed=5)


def test_one_class_has_no_interval() -> None:
    low, high = class_bootstrap({"m": np.array([0.0, 1.0])}, np.array([4, 4]), 100)["m"]
    assert np.isnan([low, high]).all()


def test_intervals_of_retrieval_metrics_hold_the_value() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) // 5
    x = rng.normal(size=(60, 8))[labels] + rng.normal(size=(300, 8))
    scores = retrieval_metrics(x, labels, ks=(1, 2), bootstrap=500)
    assert set(scores.intervals) == {"recall@1", "recall@2", "precision@1", "r_precision", "map@r", "mrr"}
    for name, (low, high) in scores.intervals.items():
        assert low < scores[name] < high
    assert retrieval_metrics(x, labels).intervals == {}

"""Confidence intervals that respect classes."""

from __future__ import annotations

import numpy as np


def class_bootstrap(
    per_query: dict[str, np.ndarray], classes: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the mean of each metric over queries, by resampling whole classes.

    Queries of one class share their positives and their look, so they are not independent, and resampling
    single queries would give intervals that are too narrow. What chance chose are the classes: each resample
    draws as many classes as there are, with replacement, and takes all their queries.

    Args:
        per_query: metric name -> ``[N]``, NaN for queries that do not count (the same in each metric).
        classes: ``[N]`` class of each query.
        resamples: how many; 1,000 give limits good to about a twentieth of the interval.
        seed: the same seed gives the same intervals.

    Returns:
        metric name -> (low, high); (NaN, NaN) when fewer than two classes have a query that counts.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; whole groups: Davison
    and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    """
    means = bootstrap_means(per_query, classes, resamples, seed)
    if not len(means):
        return {name: (float("nan"), float("nan")) for name in per_query}
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(per_query, low, high)}


def bootstrap_means(
    per_query: dict[str, np.ndarray], classes: np.ndarray, resamples: int, seed: int = 0
) -> np.ndarray:
    """The resampled means themselves: float64 ``[resamples, columns]``, in the order of ``per_query``.

    Arguments as of :func:`class_bootstrap`. Each resample's classes are the same for all columns, so that columns
    can be compared. Empty, ``[0, columns]``, when fewer than two classes have a query that counts.
    """
    table = np.stack(list(per_query.values()), axis=1)  # (N, columns)
    counted = ~np.isnan(table).any(axis=1)
    present, code = np.unique(classes[counted], return_inverse=True)
    if len(present) < 2:
        return np.empty((0, table.shape[1]))
    size = np.bincount(code).astype(float)  # (C,)
    total = np.stack(
        [np.bincount(code, weights=column) for column in table[counted].T], axis=1
    )  # (C, columns)

    rng = np.random.default_rng(seed)
    even = np.full(len(present), 1 / len(present))
    means = np.empty((resamples, table.shape[1]))
    # How often each class is drawn is all that matters. A hundred resamples at a time: (100, C).
    for start in range(0, resamples, 100):
        drawn = rng.multinomial(len(present), even, size=min(100, resamples - start)).astype(float)
        means[start : start + len(drawn)] = (drawn @ total) / (drawn @ size)[:, None]
    return means

"""Intervals and tests for the scores of a cross-validated benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95% t interval: mean ± t_0.975, n-1 · s / √n; half-width NaN for one value.

    >>> mean, half = t_interval([0.50, 0.54])
    >>> round(mean, 3), round(half, 3)
    (0.52, 0.254)
    """
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return (float(x.mean()) if len(x) else math.nan), math.nan
    return float(x.mean()), float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))


def corrected_paired_t(differences: Sequence[float], folds: int) -> float:
    """Two-sided p of "no difference", from paired differences of ``folds`` models for each of some seeds.

    The models of different folds share most of their training classes, so their scores are no independent sample and
    the usual paired t-test finds too much. The variance of the mean is taken as (1/n + 1/(folds - 1)) s² in place of
    s²/n, with n - 1 degrees of freedom. One fold is the usual paired t-test over seeds.

    Source: Nadeau and Bengio, "Inference for the Generalization Error" (Machine Learning 52, 2003), equation 9, with
    the ratio of validation to training classes; repeated cross-validation: Bouckaert and Frank (PAKDD 2004).

    Returns:
        p in [0, 1]; NaN for fewer than two differences.
    """
    from scipy.stats import t

    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return math.nan
    shared = (
        1 / (folds - 1) if folds > 1 else 0.0
    )  # models that differ by their seed alone share nothing by chance
    spread = math.sqrt((1 / len(d) + shared) * d.var(ddof=1))
    if spread == 0:
        return 1.0 if d.mean() == 0 else 0.0
    return float(2 * t.sf(abs(d.mean()) / spread, len(d) - 1))


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of "no difference" from bootstrapped differences ``[B]``; at least 2 / (B + 1), NaN for B = 0."""
    if not len(differences):
        return math.nan
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number, so that the chance of any false finding stays below the level.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (Scand. J. Statistics 6, 1979). NaN is left
    out and stays NaN.

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted.tolist()

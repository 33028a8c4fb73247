"""Rows of the tables, and which systems differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from deepmetric.benchmark.scores import METRICS, Scores
from deepmetric.benchmark.statistics import bootstrap_p, corrected_paired_t, holm, t_interval
from deepmetric.evaluation.bootstrap import bootstrap_means


def resamples(systems: int) -> int:
    """So many that each pair of ``systems`` may differ: p is 2 / (resamples + 1) or more, and Holm multiplies the
    smallest by the number of pairs."""
    return max(10_000, 50 * math.comb(systems, 2))


@dataclass
class Row:
    """A system's line in a table.

    values: metric -> (mean, half-width of the 95% t interval, NaN for one value).
    number: how many values the mean is of.
    classes: MAP@R's 95% interval over resampled test classes; of concatenated embeddings alone.
    """

    system: str
    values: dict[str, tuple[float, float]]
    number: int
    classes: tuple[float, float] | None = None


@dataclass
class Pair:
    """Two systems: MAP@R of ``first`` minus that of ``second``, p and Holm's p over all pairs of the table."""

    first: str
    second: str
    difference: float
    p: float
    adjusted: float = math.nan

    @property
    def differs(self) -> bool:
        return self.adjusted < 0.05


def separated_rows(scores: Scores) -> list[Row]:
    """Mean and interval over all models, each on its own, best MAP@R first."""
    rows = []
    for system, models in scores.separated.items():
        values = {metric: t_interval([model[metric] for model in models.values()]) for metric in METRICS}
        rows.append(Row(system, values, len(models)))
    return sorted(rows, key=_by_map)


def concatenated_rows(scores: Scores) -> list[Row]:
    """Mean and interval over seeds of the folds' embeddings side by side, best MAP@R first."""
    means = _class_means(scores)
    rows = []
    for system, seeds in scores.concatenated.items():
        values = {metric: t_interval([one[metric] for one in seeds.values()]) for metric in METRICS}
        classes = None  # one class alone cannot be resampled
        if len(means[system]):
            low, high = np.quantile(means[system], [0.025, 0.975])
            classes = (float(low), float(high))
        rows.append(Row(system, values, len(seeds), classes))
    return sorted(rows, key=_by_map)


def separated_pairs(scores: Scores, folds: int) -> list[Pair]:
    """Each pair of systems by the models that both have: the same seed, fold and so initial weights and batches."""
    pairs = []
    for a, b in combinations([row.system for row in separated_rows(scores)], 2):
        first, second = scores.separated[a], scores.separated[b]
        d = [first[model]["map@r"] - second[model]["map@r"] for model in first if model in second]
        if d:
            pairs.append(Pair(a, b, float(np.mean(d)), corrected_paired_t(d, folds)))
    return _adjusted(pairs)


def concatenated_pairs(scores: Scores) -> list[Pair]:
    """Each pair of systems over the same resampled test classes, seeds averaged."""
    means = _class_means(scores)
    rows = concatenated_rows(scores)
    value = {row.system: row.values["map@r"][0] for row in rows}
    pairs = [
        Pair(a, b, value[a] - value[b], bootstrap_p(means[a] - means[b]))
        for a, b in combinations([row.system for row in rows], 2)
    ]
    return _adjusted(pairs)


def _class_means(scores: Scores) -> dict[str, np.ndarray]:
    """System -> MAP@R ``[B]`` over resampled test classes, the same classes for all systems."""
    if not scores.concatenated:
        return {}
    columns = {
        system: np.mean([one.per_query["map@r"] for one in seeds.values()], axis=0)
        for system, seeds in scores.concatenated.items()
    }
    means = bootstrap_means(columns, scores.query_classes, resamples(len(columns)))
    return dict(zip(columns, means.T))


def _adjusted(pairs: list[Pair]) -> list[Pair]:
    for pair, adjusted in zip(pairs, holm([pair.p for pair in pairs])):
        pair.adjusted = adjusted
    return pairs


def _by_map(row: Row) -> float:
    return -row.values["map@r"][0]

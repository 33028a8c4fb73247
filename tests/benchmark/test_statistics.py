import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deepmetric.benchmark.statistics import bootstrap_p, corrected_paired_t, holm, t_interval

values = st.lists(st.floats(0, 1).map(lambda x: round(x, 4)), min_size=2, max_size=12)


@given(values)
def test_t_interval_is_scipys(x):
    mean, half = t_interval(x)
    if np.std(x) == 0:
        assert half == pytest.approx(0, abs=1e-12)
        return
    low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=stats.sem(x))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_the_papers_ten_repetitions():
    """Ten values: t is 2.262."""
    x = np.arange(10.0)
    assert t_interval(x.tolist())[1] == pytest.approx(2.262157 * x.std(ddof=1) / math.sqrt(10))


def test_no_resample_has_no_p():
    assert math.isnan(bootstrap_p(np.empty(0)))


def test_one_value_has_no_interval():
    mean, half = t_interval([0.5])
    assert mean == 0.5
    assert math.isnan(half)


def test_corrected_t_without_shared_classes_is_the_paired_t_test():
    """With endlessly many folds nothing is left of the correction, and with one there is nothing to correct."""
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    for folds in (10**9, 1):
        p = corrected_paired_t((a - b).tolist(), folds=folds)
        assert p == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_corrected_t_by_hand():
    d = [0.02, 0.03, 0.01, 0.04, 0.02, 0.03, 0.00, 0.03]
    t = np.mean(d) / math.sqrt((1 / 8 + 1 / 3) * np.var(d, ddof=1))
    assert corrected_paired_t(d, folds=4) == pytest.approx(2 * stats.t.sf(t, 7))


def test_corrected_t_finds_less_than_the_plain_one_when_nothing_differs():
    """Scores of folds share a part: the plain test is wrong too often, the corrected one keeps to 5%."""
    rng = np.random.default_rng(0)
    trials, folds = 2000, 4
    shared = rng.normal(size=(trials, 1)) * math.sqrt(1 / folds)
    d = shared + rng.normal(size=(trials, folds)) * math.sqrt(1 - 1 / folds)
    plain = np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue < 0.05)
    corrected = np.mean([corrected_paired_t(row.tolist(), folds) < 0.05 for row in d])
    assert plain > 0.08
    assert corrected < 0.06


def test_equal_systems():
    assert corrected_paired_t([0.0, 0.0, 0.0], 4) == 1
    assert bootstrap_p(np.zeros(100)) == 1


def test_bootstrap_p_by_count():
    assert bootstrap_p(np.array([1.0] * 97 + [-1.0] * 2)) == pytest.approx(2 * 3 / 100)
    assert bootstrap_p(np.ones(9999)) == pytest.approx(2e-4)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_steps_down(p):
    adjusted = holm(p)
    order = np.argsort(p, kind="stable")
    expected = [min(1.0, max((len(p) - j) * p[order[j]] for j in range(i + 1))) for i in range(len(p))]
    assert [adjusted[i] for i in order] == pytest.approx(expected)


def test_holm_leaves_out_what_could_not_be_tested():
    assert holm([0.02, math.nan, 0.04]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)

import numpy as np
import pytest

from deepmetric.errors import InputError
from deepmetric.evaluation.postprocessing import Whitening

rng = np.random.default_rng(0)
ROWS = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 2.0


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_training_rows_become_white() -> None:
    """Before the last normalisation the covariance is the identity: the axes times the covariance show it."""
    whiten = Whitening(ROWS)
    x = unit(ROWS)
    white = (x - x.mean(axis=0)) @ whiten._axes
    np.testing.assert_allclose(np.cov(white.T), np.eye(white.shape[1]), atol=1e-4)
    np.testing.assert_allclose(whiten(ROWS), unit(white), atol=1e-4)


def test_keeps_the_strongest_axes() -> None:
    whole, part = Whitening(ROWS), Whitening(ROWS, dim=2)
    assert part(ROWS[:3]).shape == (3, 2)
    np.testing.assert_allclose(abs(part._axes), abs(whole._axes[:, :2]), atol=1e-6)


def test_an_axis_without_variance_is_dropped() -> None:
    flat = np.concatenate([ROWS, np.zeros((400, 3))], axis=1)
    assert Whitening(flat)(flat).shape == (400, Whitening(ROWS)(ROWS).shape[1])


def test_scale_of_rows_does_not_matter() -> None:
    whiten = Whitening(ROWS)
    np.testing.assert_allclose(whiten(7 * ROWS[:5]), whiten(ROWS[:5]), atol=1e-5)


def test_too_many_axes() -> None:
    with pytest.raises(InputError, match="1 to 6"):
        Whitening(ROWS, dim=7)


def test_rows_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match="the 5 training rows are all alike"):
        Whitening(np.ones((5, 6)))
    with pytest.raises(InputError, match="`rows` have 5 columns, the training rows had 6"):
        Whitening(ROWS)(ROWS[:, :5])

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.training.guards import (
    LOOKS,
    CollapseWatch,
    NonFiniteLossError,
    check_finite,
    check_gradient,
    check_scalar,
    mean_similarity,
)


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 100))
def test_mean_similarity_is_that_of_the_pairs(n, d, seed):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize(x, dim=1)
    pairs = [float(unit[i] @ unit[j]) for i in range(n) for j in range(n) if i != j]
    assert mean_similarity(x) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_mean_similarity_of_one_row_is_undefined():
    assert math.isnan(mean_similarity(torch.ones(1, 3)))


def test_collapse_is_said_once_and_only_when_it_lasts():
    watch = CollapseWatch()
    spread, same = torch.eye(4), torch.ones(4, 4) + 0.001 * torch.eye(4)
    assert [watch.look(same, i) for i in range(LOOKS - 1)] == [None] * (LOOKS - 1)
    assert watch.look(spread, 9) is None  # it recovered: the count starts anew
    said = [watch.look(same, i) for i in range(3 * LOOKS)]
    assert [i for i, text in enumerate(said) if text] == [LOOKS - 1]
    assert "collapsed" in said[LOOKS - 1]


def test_non_finite_loss_names_step_and_the_items_at_fault():
    check_finite(torch.tensor(1.0), torch.eye(2), 3, ["a", "b"])
    embeddings = torch.eye(3)
    embeddings[1, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"nan at step 7; 1 of 3 embeddings .* items b/2"):
        check_finite(torch.tensor(math.nan), embeddings, 7, ["a/1", "b/2", "c/3"])
    with pytest.raises(NonFiniteLossError, match=r"the loss is 1.0 at step 7; 1 of 3 .* items b/2"):
        check_finite(torch.tensor(1.0), embeddings, 7, ["a/1", "b/2", "c/3"])
    with pytest.raises(
        NonFiniteLossError, match=r"inf at step 7; the embeddings are finite. The batch held a/1"
    ):
        check_finite(torch.tensor(math.inf), torch.eye(3), 7, ["a/1", "b/2", "c/3"])


def test_non_finite_gradient_names_step_and_batch():
    check_gradient(torch.tensor(1e30), 3, ["a"])
    for norm in (math.nan, math.inf):
        with pytest.raises(NonFiniteLossError, match=rf"{norm} at step 7, though .* held a/1, b/2\."):
            check_gradient(torch.tensor(norm), 7, ["a/1", "b/2"])


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (0.0, "a float"),
        ((torch.zeros(()), 1), "a tuple"),
        (torch.zeros(3, requires_grad=True), r"a tensor of shape \(3,\)"),
        (torch.zeros(()), "a tensor without gradient"),
    ],
)
def test_what_cannot_be_minimised_is_named(loss, found):
    check_scalar(torch.zeros((), requires_grad=True), "Mine")
    with pytest.raises(InputError, match=f"the loss Mine gave {found}; expected a scalar"):
        check_scalar(loss, "Mine")

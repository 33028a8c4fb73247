"""Poolings against their plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from deepmetric.errors import InputError
from deepmetric.models.pooling import POOLINGS, GeM, make_pooling


def plain_gem(features: np.ndarray, p: float) -> np.ndarray:
    return (np.maximum(features, 1e-6) ** p).mean(axis=(2, 3)) ** (1 / p)


PLAIN = {
    "avg": lambda f: f.mean(axis=(2, 3)),
    "max": lambda f: f.max(axis=(2, 3)),
    "avg+max": lambda f: f.mean(axis=(2, 3)) + f.max(axis=(2, 3)),
    "gem": lambda f: plain_gem(f, 3.0),
}

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))


@pytest.mark.parametrize("name", POOLINGS)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_equals_the_plain_formula(name: str, shape: tuple[int, ...], seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    pooled = make_pooling(name)(torch.from_numpy(features)).detach().numpy()
    assert pooled.shape == shape[:2]
    np.testing.assert_allclose(pooled, PLAIN[name](features.astype(np.float64)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    # Above GeM's clamp, whose corner has no derivative.
    features = (torch.rand(2, 3, 3, 4, dtype=torch.float64) + 0.1).requires_grad_()
    assert gradcheck(make_pooling(name).double(), (features,))


def test_gem_learns_its_exponent() -> None:
    pooling = GeM().double()
    features = torch.rand(2, 3, 3, 4, dtype=torch.float64) + 0.1

    def of_exponent(p: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(pooling, {"p": p}, (features,))

    assert pooling.p.requires_grad
    assert gradcheck(of_exponent, (torch.tensor([2.5], dtype=torch.float64, requires_grad=True),))


def test_gem_between_mean_and_maximum() -> None:
    features = torch.rand(2, 3, 4, 4) + 0.01
    torch.testing.assert_close(GeM(p=1.0)(features), features.mean(dim=(2, 3)))
    torch.testing.assert_close(GeM(p=60.0)(features), features.amax(dim=(2, 3)), rtol=0.06, atol=0)


def test_gem_keeps_half_precision_finite() -> None:
    # 100**3 is more than float16 holds.
    features = torch.full((1, 2, 3, 3), 100.0, dtype=torch.float16)
    pooled = GeM().half()(features)
    assert pooled.dtype == torch.float16
    torch.testing.assert_close(pooled, torch.full((1, 2), 100.0, dtype=torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GeM()(features.float()), GeM()(features.float()))


def test_gem_of_a_map_without_activation_is_finite() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pooling = GeM()
    pooling(features).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert pooling.p.grad is not None
    assert pooling.p.grad.isfinite().all()


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"unknown pooling 'gme'.*Did you mean 'gem'\?"):
        make_pooling("gme")

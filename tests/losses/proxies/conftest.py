"""Each loss with class weights, beside the loop that defines it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from deepmetric.losses import (
    ArcFaceLoss,
    ClassLoss,
    CosFaceLoss,
    LargeMarginSoftmaxLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SphereFaceLoss,
    SubCenterArcFaceLoss,
)

_spec = importlib.util.spec_from_file_location("proxies_dense", Path(__file__).with_name("dense.py"))
assert _spec is not None
assert _spec.loader is not None
dense = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(dense)


class Form(NamedTuple):
    make: Callable[..., ClassLoss]  # of num_classes, dim and more keyword arguments
    truth: Callable[[Tensor, Tensor, Tensor], Tensor]  # of x, labels, proxies [C, K, d]


def _softmax(make: Callable[..., ClassLoss], own, other, smoothing: float = 0.0) -> Form:
    return Form(make, lambda x, y, w: dense.softmax_loss(x, y, w, own, other, smoothing))


def _soft_triple(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    s = dense.soft_similarity(0.2)
    value = dense.softmax_loss(x, y, w, lambda a, b: 8 * (s(a, b) - 0.1), lambda a, b: 8 * s(a, b))
    return value + 0.3 * dense.spread(w, 1e-5)


def _nearest(x: Tensor, w: Tensor) -> Tensor:
    return (dense.unit(w) @ dense.unit(x)).max()


_cos = dense.cosine
FORMS: dict[str, Form] = {
    "proxy_nca": Form(
        lambda c, d, **k: ProxyNCALoss(c, d, 2.0, **k),
        lambda x, y, w: dense.proxy_nca_of_the_paper(x, y, w, 2.0),
    ),
    "proxy_nca probability": _softmax(
        lambda c, d, **k: ProxyNCALoss(c, d, 2.0, "probability", 0.1, **k),
        lambda x, w: -2 * (dense.unit(x) - dense.unit(w[0])).square().sum(),
        lambda x, w: -2 * (dense.unit(x) - dense.unit(w[0])).square().sum(),
        0.1,
    ),
    "proxy_anchor": Form(
        lambda c, d, **k: ProxyAnchorLoss(c, d, 0.2, 6.0, **k),
        lambda x, y, w: dense.proxy_anchor(x, y, w, 0.2, 6.0),
    ),
    "proxy_anchor steep": Form(
        lambda c, d, **k: ProxyAnchorLoss(c, d, 0.2, 600.0, **k),
        lambda x, y, w: dense.proxy_anchor(x, y, w, 0.2, 600.0),
    ),
    "soft_triple": Form(lambda c, d, **k: SoftTripleLoss(c, d, 3, 8.0, 0.2, 0.1, 0.3, **k), _soft_triple),
    "normalized_softmax": _softmax(
        lambda c, d, **k: NormalizedSoftmaxLoss(c, d, 0.2, **k),
        lambda x, w: 5 * _cos(x, w),
        lambda x, w: 5 * _cos(x, w),
    ),
    "normalized_softmax of rows as given": _softmax(
        lambda c, d, **k: NormalizedSoftmaxLoss(c, d, 0.2, 0.1, False, **k),
        lambda x, w: 5 * x.norm() * _cos(x, w),
        lambda x, w: 5 * x.norm() * _cos(x, w),
        0.1,
    ),
    "cosface": _softmax(
        lambda c, d, **k: CosFaceLoss(c, d, 0.3, 64.0, **k),
        lambda x, w: 64 * (_cos(x, w) - 0.3),
        lambda x, w: 64 * _cos(x, w),
    ),
    "arcface": _softmax(
        lambda c, d, **k: ArcFaceLoss(c, d, 0.6, 10.0, **k),
        lambda x, w: 10 * dense.arc(_cos(x, w), 0.6),
        lambda x, w: 10 * _cos(x, w),
    ),
    "subcenter_arcface": _softmax(
        lambda c, d, **k: SubCenterArcFaceLoss(c, d, 0.6, 10.0, 3, 0.1, **k),
        lambda x, w: 10 * dense.arc(_nearest(x, w), 0.6),
        lambda x, w: 10 * _nearest(x, w),
        0.1,
    ),
    "sphereface": _softmax(
        lambda c, d, **k: SphereFaceLoss(c, d, 3, 2.0, **k),
        lambda x, w: 2 * x.norm() * dense.psi(_cos(x, w), 3),
        lambda x, w: 2 * x.norm() * _cos(x, w),
    ),
    "large_margin_softmax": _softmax(
        lambda c, d, **k: LargeMarginSoftmaxLoss(c, d, 2, 2.0, **k),
        lambda x, w: 2 * x.norm() * w[0].norm() * dense.psi(_cos(x, w), 2),
        lambda x, w: 2 * x @ w[0],
    ),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture
def problem() -> Callable[..., tuple[Tensor, Tensor]]:
    """``problem(seed, n=7, classes=5, d=4)``: float64 rows of any norm, and labels among the classes."""

    def make(seed: int, n: int = 7, classes: int = 5, d: int = 4) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
        return rows, torch.randint(classes, (n,), generator=generator)

    return make


def per_class(loss: ClassLoss) -> Tensor:
    """The proxies as [C, K, d]."""
    return loss.proxies.view(-1, loss.centers, loss.proxies.shape[1])


@pytest.fixture
def grouped() -> Callable[[ClassLoss], Tensor]:
    return per_class

"""Losses that hold a vector, a proxy, for each class: Proxy-NCA, Proxy-Anchor, SoftTriple, softmax with margins."""

from __future__ import annotations

from deepmetric.losses.proxies.arcface import ArcFaceLoss, SubCenterArcFaceLoss
from deepmetric.losses.proxies.base import ClassBatch, ClassLoss
from deepmetric.losses.proxies.cosface import CosFaceLoss
from deepmetric.losses.proxies.normalized_softmax import NormalizedSoftmaxLoss
from deepmetric.losses.proxies.proxy_anchor import ProxyAnchorLoss
from deepmetric.losses.proxies.proxy_nca import ProxyNCALoss
from deepmetric.losses.proxies.soft_triple import SoftTripleLoss
from deepmetric.losses.proxies.softmax import SoftmaxLoss
from deepmetric.losses.proxies.sphereface import LargeMarginSoftmaxLoss, SphereFaceLoss

__all__ = [
    "ArcFaceLoss",
    "ClassBatch",
    "ClassLoss",
    "CosFaceLoss",
    "LargeMarginSoftmaxLoss",
    "NormalizedSoftmaxLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SoftmaxLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
]

"""Adapters of the losses with class weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from deepmetric.losses import (
    ArcFaceLoss,
    CosFaceLoss,
    LargeMarginSoftmaxLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SphereFaceLoss,
    SubCenterArcFaceLoss,
)


def proxy_nca(case: Any) -> Tensor:
    return case.with_proxies(ProxyNCALoss(softmax_scale=case["softmax_scale"], form="probability"))


def scaled_proxy_nca(case: Any) -> Tensor:
    """Rows and proxies of norm ``scale`` where ours have norm 1."""
    return case.with_proxies(ProxyNCALoss(softmax_scale=case["scale"] ** 2, form="paper"))


def proxy_nca_pp(case: Any) -> Tensor:
    return case.with_proxies(ProxyNCALoss(softmax_scale=case["scale"] ** 2, form="probability"))


def proxy_anchor(case: Any) -> Tensor:
    return case.with_proxies(ProxyAnchorLoss(margin=case["margin / mrg"], alpha=case["alpha"]))


def softmax_of_rows_as_given(case: Any) -> Tensor:
    return case.with_proxies(
        NormalizedSoftmaxLoss(temperature=case["loss_softmax_temperature"], normalize=False)
    )


def arcface_in_degrees(case: Any) -> Tensor:
    margin = case["margin"]
    if case.scenario != "exactly_aligned":  # which gives it in radians
        margin = math.radians(margin)
    return case.with_proxies(ArcFaceLoss(margin=margin, scale=case["scale"]))


def arcface_in_radians(case: Any) -> Tensor:
    margin, scale = case.get("m", case.get("margin")), case.get("s", case.get("scale"))
    return case.with_proxies(
        ArcFaceLoss(margin=margin, scale=scale, label_smoothing=case.get("smoothing_epsilon", 0.0))
    )


def subcenter_arcface(case: Any) -> Tensor:
    loss = SubCenterArcFaceLoss(
        margin=math.radians(case["margin"]), scale=case["scale"], sub_centers=case["sub_centers"]
    )
    return case.with_proxies(loss)


def soft_triple(case: Any) -> Tensor:
    """The authors' code has 1e-5 under the root of its penalty, PML has not."""
    pml = case.variant.startswith("pml")
    loss = SoftTripleLoss(
        centers_per_class=case["centers_per_class / K"],
        la=case["la"],
        gamma=case["gamma"],
        margin=case["margin"],
        tau=case.get("weight_reg_weight", 0.0) if pml else case["tau"],
        eps=0.0 if pml else 1e-5,
    )
    return case.with_proxies(loss)


ADAPTERS: dict[tuple[str, str], Callable[[Any], Tensor]] = {
    ("proxy_nca", "pml"): proxy_nca,
    ("proxy_nca", "proxynca_pp_classic"): scaled_proxy_nca,
    ("proxy_nca", "revisiting"): scaled_proxy_nca,
    ("proxy_nca_pp", "proxynca_pp_prob"): proxy_nca_pp,
    ("proxy_anchor", "original"): proxy_anchor,
    ("proxy_anchor", "pml"): proxy_anchor,
    ("normalized_softmax", "pml"): lambda case: case.with_proxies(
        NormalizedSoftmaxLoss(temperature=case["temperature"])
    ),
    ("normalized_softmax", "revisiting"): softmax_of_rows_as_given,
    ("cosface", "pml"): lambda case: case.with_proxies(
        CosFaceLoss(margin=case["margin"], scale=case["scale"])
    ),
    ("arcface", "oml"): arcface_in_radians,
    ("arcface", "oml_label_smoothing"): arcface_in_radians,
    ("arcface", "pml"): arcface_in_degrees,
    ("arcface", "revisiting"): lambda case: case.with_proxies(
        ArcFaceLoss(margin=case["angular_margin"], scale=case["feature_scale"])
    ),
    ("subcenter_arcface", "pml"): subcenter_arcface,
    ("sphereface", "pml"): lambda case: case.with_proxies(
        SphereFaceLoss(margin=case["margin"], scale=case["scale"])
    ),
    ("large_margin_softmax", "pml"): lambda case: case.with_proxies(
        LargeMarginSoftmaxLoss(margin=case["margin"], scale=case["scale"])
    ),
    ("soft_triple", "original"): soft_triple,
    ("soft_triple", "pml"): soft_triple,
    ("soft_triple", "pml_regularised"): soft_triple,
    ("soft_triple", "revisiting"): lambda case: case.with_proxies(
        SoftTripleLoss(
            centers_per_class=2,
            la=case["lambda"],
            gamma=case["gamma"],
            margin=case["margin_delta"],
            tau=case["reg_weight"],
        )
    ),
}

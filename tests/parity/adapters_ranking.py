"""Adapters of losses of rankings and histograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deepmetric.losses import (
    ContrastiveLoss,
    FastAPLoss,
    HistogramLoss,
    PNPLoss,
    PrecisionAtKLoss,
    RecallAtKLoss,
    SmoothAPLoss,
    SupAPLoss,
)


def fast_ap(case: Any) -> Tensor:
    return case.apply(FastAPLoss(case["num_bins"]))


def soft_bin_ap(case: Any) -> Tensor:
    return case.apply(FastAPLoss(case["nq"] - 1, count_query=True))


def smooth_ap(case: Any) -> Tensor:
    (temperature,) = case.parameters.values()  # "anneal", "tau" or "temperature"
    return case.apply(SmoothAPLoss(temperature, count_query=True))


def sup_ap(case: Any) -> Tensor:
    return case.apply(
        SupAPLoss(case["tau"], case["rho"], case["delta"], case["offset"], case["start"], count_query=True)
    )


def calibration(case: Any) -> Tensor:
    margins = case["pos_margin"], case["neg_margin"]
    return case.apply(ContrastiveLoss("cosine_hinge", *margins, reduction="nonzero"))


def recall_at_k(case: Any) -> Tensor:
    return case.apply(RecallAtKLoss(case["k_vals"], case["k_temperatures"], case["anneal"], count_query=True))


def precision_at_k(case: Any) -> Tensor:
    return case.apply(PrecisionAtKLoss(case["k"], case["temperature1"], case["temperature2"]))


def pnp(case: Any) -> Tensor:
    settings = {name: case[name] for name in ("alpha", "b") if name in case.parameters}
    variant = case.variant.split("_")[1]
    return case.apply(PNPLoss(variant, case["anneal"], **settings, count_query=True))


ADAPTERS: dict[tuple[str, str], Callable[[Any], Tensor]] = {
    ("fast_ap", "original"): fast_ap,
    ("fast_ap", "pml"): fast_ap,
    ("fast_ap", "pml_b"): fast_ap,
    ("histogram", "pml"): lambda case: case.apply(HistogramLoss(case["n_bins"], "in_triplets")),
    ("histogram", "pml_b"): lambda case: case.apply(HistogramLoss(case["n_bins"], "in_triplets")),
    ("histogram", "revisiting"): lambda case: case.apply(HistogramLoss(case["loss_histogram_nbins"] - 1)),
    ("pnp", "original_Ib"): pnp,
    ("pnp", "original_O"): pnp,
    ("pnp", "pml_Dq"): pnp,
    ("pnp", "pml_Ds"): pnp,
    ("pnp", "pml_Ib"): pnp,
    ("pnp", "pml_Iu"): pnp,
    ("pnp", "pml_O"): pnp,
    ("recall_at_k_surrogate", "oml_precision"): precision_at_k,
    ("recall_at_k_surrogate", "original"): recall_at_k,
    ("roadmap_calibration", "roadmap"): calibration,
    ("smooth_ap", "original"): smooth_ap,
    ("smooth_ap", "pml"): smooth_ap,
    ("smooth_ap", "roadmap"): smooth_ap,
    ("softbin_ap", "roadmap"): soft_bin_ap,
    ("supap", "roadmap"): sup_ap,
    ("supap", "roadmap_b"): sup_ap,
}

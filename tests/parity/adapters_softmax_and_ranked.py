"""Adapters of N-pairs, NT-Xent, SupCon, circle, tuplet margin, intra-pair variance, angular and ranked list losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepmetric.losses import (
    AngularLoss,
    CircleLoss,
    IntraPairVarianceLoss,
    NPairsLoss,
    NTXentLoss,
    PairLoss,
    RankedListLoss,
    SupConLoss,
    TupletMarginLoss,
)


def of_given_pairs(case: Any, loss: PairLoss) -> Tensor:
    """The mean over the case's pairs, each alone against the items of other classes."""
    x, y = case.embeddings, case.labels
    case.as_given = True
    costs = []
    for anchor, positive in case.fields["anchor_positive"]:
        refs = torch.cat([torch.tensor([positive]), (y != y[anchor]).nonzero()[:, 0]])
        costs.append(loss(x[[anchor]], y[[anchor]], x[refs], y[refs]))
    return torch.stack(costs).mean()


def npairs(case: Any) -> Tensor:
    return case.apply(NPairsLoss(normalize=case["normalize_embeddings"]))


def npairs_with_norms(case: Any) -> Tensor:
    """A penalty on row norms (ours, as the paper's, is on their squares) stands beside the loss."""
    penalty = case["loss_npair_l2"] * case.embeddings.norm(dim=1).mean()
    return of_given_pairs(case, NPairsLoss("all")) + penalty


def angular_beside_npairs(case: Any) -> Tensor:
    penalty = case["npair_l2"] * case.embeddings.norm(dim=1).mean()
    ratio = case["npair_ang_weight"]
    npairs_part = of_given_pairs(case, NPairsLoss("all"))
    return npairs_part + ratio * of_given_pairs(case, AngularLoss(case["alpha"])) + penalty


def ntxent_one_way(case: Any) -> Tensor:
    """The first half of the rows against all; partners are known by place and have no terms of their own."""
    half = len(case.embeddings) // 2
    item = torch.arange(half)
    return NTXentLoss(case["tau"])(case.embeddings[:half], item, case.embeddings, item.repeat(2), item)


def supcon_over_all(case: Any) -> Tensor:
    return case.apply(SupConLoss(case["temperature"], case["base_temperature"], reduction="anchors"))


ADAPTERS: dict[tuple[str, str], Callable[[Any], Tensor]] = {
    ("npairs", "pml"): npairs,
    ("npairs", "pml_unnormalised"): npairs,
    ("npairs", "revisiting_given_pairs"): npairs_with_norms,
    ("ntxent", "hyp_metric_sphere"): ntxent_one_way,
    ("ntxent", "pml"): lambda case: case.apply(NTXentLoss(case["temperature"])),
    ("ntxent", "pml_b"): lambda case: case.apply(NTXentLoss(case["temperature"])),
    ("ntxent", "pml_cross_batch_memory"): lambda case: case.through_memory(
        NTXentLoss(**case.called("wrapped loss"))
    ),
    ("supcon", "original"): supcon_over_all,
    ("supcon", "pml"): lambda case: case.apply(SupConLoss(case["temperature"])),
    ("supcon", "pml_b"): lambda case: case.apply(SupConLoss(case["temperature"])),
    ("supcon", "pml_cross_batch_memory"): lambda case: case.through_memory(
        SupConLoss(**case.called("wrapped loss"))
    ),
    ("circle", "original_whole_batch"): lambda case: case.apply(
        CircleLoss(case["m"], case["gamma"], "batch")
    ),
    ("circle", "pml"): lambda case: case.apply(CircleLoss(case["m"], case["gamma"])),
    ("circle", "pml_soft"): lambda case: case.apply(CircleLoss(case["m"], case["gamma"])),
    ("circle", "pml_cross_batch_memory"): lambda case: case.through_memory(
        CircleLoss(**case.called("wrapped loss"))
    ),
    ("tuplet_margin", "pml"): lambda case: case.apply(TupletMarginLoss(case["margin"], case["scale"])),
    ("intra_pair_variance", "pml"): lambda case: case.apply(
        IntraPairVarianceLoss(case["pos_eps"], case["neg_eps"])
    ),
    ("angular", "pml"): lambda case: case.apply(AngularLoss(case["alpha"])),
    ("angular", "pml_unnormalised_input"): lambda case: case.apply(AngularLoss(case["alpha"])),
    ("angular", "revisiting_npair_angular"): angular_beside_npairs,
    ("ranked_list", "pml"): lambda case: case.apply(
        RankedListLoss(case["margin"], case["alpha"], case["Tn"], case["Tp"], case["imbalance"])
    ),
}

NOT_OFFERED: dict[tuple[str, ...], str] = {
    ("supcon", "pml", "single_class"): "0 for a batch without negatives, where the formula is not 0",
}

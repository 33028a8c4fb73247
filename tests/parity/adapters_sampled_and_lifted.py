"""Adapters of lifted structure, binomial deviance, hard mining, margin and NCA losses, and of sampling tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepmetric.losses import (
    BinomialDevianceLoss,
    HardMiningLoss,
    LiftedStructureLoss,
    MarginLoss,
    NCALoss,
    distance_weighted_sampling,
)
from deepmetric.losses.streamed import Comparison

# Deep_Metric's code mines with this slack and, where it does not mine, has this slope of positives.
SLACK, SLOPE = 0.1, 2.0
# Where it mines it takes this threshold, whatever it is told.
THRESHOLD = 0.5


def lifted(case: Any) -> Tensor:
    return case.apply(
        LiftedStructureLoss(
            margin=case["neg_margin"],
            positive_margin=case["pos_margin"],
            distance={1: "distance", 2: "squared_distance"}[case["distance.power"]],
            normalize=True,
        )
    )


def lifted_modified(case: Any) -> Tensor:
    return without_copies(
        case,
        LiftedStructureLoss(
            "modified",
            alpha=case["beta"],
            beta=case["alpha"],
            epsilon=None if case["hard_mining"] is None else SLACK,
        ),
    )


def lifted_generalized(case: Any) -> Tensor:
    return case.apply(
        LiftedStructureLoss(
            "generalized",
            margin=case["neg_margin"],
            positive_margin=case["pos_margin"],
            normalize=True,
            incomplete="count",
        )
    )


def lifted_generalized_with_norms(case: Any) -> Tensor:
    """A penalty on row norms stands beside the loss."""
    loss = LiftedStructureLoss("generalized", margin=case["loss_lifted_neg_margin"], reduction="kept")
    return case.apply(loss) + case["loss_lifted_l2"] * case.embeddings.norm(dim=1).mean()


def binomial(case: Any) -> Tensor:
    mined = case["hard_mining"] is not None
    return without_copies(
        case,
        BinomialDevianceLoss(
            alpha=case["beta"] if mined else SLOPE,
            beta=case["alpha"],
            base=THRESHOLD if mined else case["margin"],
            epsilon=SLACK if mined else None,
            scaled=mined,
        ),
    )


def hard_mining(case: Any) -> Tensor:
    return without_copies(case, HardMiningLoss(case["margin"]))


def without_copies(case: Any, loss: nn.Module) -> Tensor:
    """The peer takes exact copies for the item itself and leaves them out. Ours leaves out by position: each
    anchor meets a reference set without its copies, and the loss is the mean over anchors."""
    x, y = case.embeddings, case.labels
    copies = (y[:, None] == y) & ((x @ x.T).detach() >= 1)
    if (copies.sum(1) == 1).all():
        return case.apply(loss)
    costs = [loss(x[i : i + 1], y[i : i + 1], x[~copies[i]], y[~copies[i]]) for i in range(len(x))]
    return torch.stack(costs).mean()


def margin_all(case: Any) -> Tensor:
    return case.apply(MarginLoss(case["margin"], case["beta"], sampling="all"))


def margin_per_class(case: Any) -> Tensor:
    loss = MarginLoss(
        case["margin"], learn_beta=True, num_classes=len(case.beta), nu=case["nu"], sampling="all"
    )
    arguments = (case.embeddings, case.labels)
    if case.ref_embeddings is not None:
        arguments += (case.ref_embeddings, case.ref_labels)
    return functional_call(loss, {"beta": case.beta}, arguments)


def margin_given(case: Any) -> Tensor:
    refs, ref_labels = case.ref_embeddings, case.ref_labels
    if refs is None:
        refs, ref_labels = case.embeddings, case.labels
    pairs = Comparison(case.embeddings, case.labels, refs, ref_labels, None, kind="distance")
    anchor, positive, negative = torch.tensor(case.fields["triplets"]).T
    loss = MarginLoss(case["margin"], case["beta"])
    return loss.of_distances(pairs.values(anchor, positive), pairs.values(anchor, negative))


def margin_of_lengthened_distances(case: Any) -> Tensor:
    """Rows as given; 1e-8 is added below the square root; a triplet counts once."""
    case.as_given = True
    anchor, positive, negative = case.embeddings[torch.tensor(case.fields["triplets"])].unbind(1)
    loss = MarginLoss(case["margin"], case["beta"], reduction="triplets")

    def distance(other: Tensor) -> Tensor:
        return ((anchor - other).square().sum(1) + 1e-8).sqrt()

    return loss.of_distances(distance(positive), distance(negative))


def nca(case: Any) -> Tensor:
    similarity = {"l2sq": "squared_distance", "cos": "cosine"}[case["distance"]]
    return case.apply(NCALoss(case["softmax_scale"], similarity=similarity))


def table(case: Any, cutoff: float, upper_cutoff: float | None) -> Tensor:
    return distance_weighted_sampling(
        case.embeddings,
        case.labels,
        case.ref_embeddings,
        case.ref_labels,
        cutoff=cutoff,
        upper_cutoff=upper_cutoff,
    )


ADAPTERS: dict[tuple[str, str], Callable[[Any], Tensor]] = {
    ("lifted_structure", "deep_metric"): lifted_modified,
    ("lifted_structure", "deep_metric_hard"): lifted_modified,
    ("lifted_structure", "pml"): lifted,
    ("lifted_structure", "pml_squared"): lifted,
    ("generalized_lifted", "pml"): lifted_generalized,
    ("generalized_lifted", "revisiting_l2"): lifted_generalized_with_norms,
    ("binomial_deviance", "deep_metric"): binomial,
    ("binomial_deviance", "deep_metric_hard"): binomial,
    ("binomial_deviance", "deep_metric_soft"): binomial,
    ("hard_mining", "deep_metric"): hard_mining,
    ("margin", "ms_loss_given_triplets"): margin_of_lengthened_distances,
    ("margin", "pml_beta_fixed"): margin_all,
    ("margin", "pml_beta_per_class"): margin_per_class,
    ("margin", "pml_given_triplets"): margin_given,
    ("margin", "revisiting_given_triplets"): margin_of_lengthened_distances,
    ("nca", "pml"): nca,
    ("nca", "pml_cosine"): nca,
    ("nca", "pml_scale"): nca,
    ("distance_weighted_sampling", "ms_loss"): lambda case: table(case, case["CUTOFF"], None),
    ("distance_weighted_sampling", "pml"): lambda case: table(
        case, case["cutoff"], case["nonzero_loss_cutoff"]
    ),
    ("distance_weighted_sampling", "revisiting"): lambda case: table(
        case, case["miner_distance_lower_cutoff"], None
    ),
}

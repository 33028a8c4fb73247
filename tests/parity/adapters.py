"""From a golden case's system, variant and parameters to our loss: one function a formula, no numbers.

``ADAPTERS[system, variant]`` takes the case and returns our loss value, attached to the case's leaves.
``NOT_OFFERED`` names the conventions that we do not have, and why; ``NOT_YET`` the systems without a part.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepmetric.losses import ContrastiveLoss, MultiSimilarityLoss, PairLoss, TripletLoss
from deepmetric.losses.inputs import checked_batch
from deepmetric.losses.streamed import Comparison

REDUCERS = {"AvgNonZeroReducer": "nonzero", "MeanReducer": "mean", "nonzero": "nonzero", "mean": "mean"}
FORMS = {
    "L2": "distance",
    "squared_L2": "squared_distance",
    "LpDistance(p=2, power=1)": "distance",
    "LpDistance(p=2, power=2)": "squared_distance",
    "CosineSimilarity": "cosine",
    1: "distance",
    2: "squared_distance",
}
MINERS = {"all": "all", "hard": "hard_band", "semihard": "semihard_band"}


class NotOffered(Exception):
    """A convention that we do not have decides this case's value."""


def cosine_contrastive(case: Any) -> Tensor:
    return case.apply(ContrastiveLoss(negative_margin=case["margin"]))


def hinge_contrastive(case: Any) -> Tensor:
    margins = {"positive_margin": case["pos_margin"], "negative_margin": case["neg_margin"]}
    return case.apply(ContrastiveLoss("cosine_hinge", **margins, reduction="nonzero"))


def distance_contrastive(case: Any) -> Tensor:
    return case.apply(
        ContrastiveLoss(
            FORMS[case.get("distance.power", "L2")],
            positive_margin=case["pos_margin"],
            negative_margin=case["neg_margin"],
            reduction=REDUCERS[case.get("reducer", "nonzero")],
        )
    )


def contrastive_memory(case: Any) -> Tensor:
    margins = case.called("wrapped loss")
    loss = ContrastiveLoss("distance", margins["pos_margin"], margins["neg_margin"], reduction="nonzero")
    return through_memory(case, loss)


def contrastive_memory_of_single_rows(case: Any) -> Tensor:
    loss = ContrastiveLoss("distance", case["pos_margin"], case["neg_margin"], reduction="mean")
    return through_memory(case, loss)


def scaled_multi_similarity(case: Any) -> Tensor:
    """The authors' code drops positives of similarity >= 1 - 1e-5, real duplicates too; ours keeps duplicates.

    The mining takes a positive that near only where a negative is within its slack, so elsewhere both agree.
    """
    batch = checked_batch(
        case.embeddings, case.labels, case.ref_embeddings, case.ref_labels, case.self_in_ref
    )
    pairs = Comparison(*batch)
    duplicate = pairs.positives.max() > 1 - 1e-5
    if (duplicate & (pairs.negatives.max() + case["margin"] > 1 - 1e-5)).any():
        raise NotOffered("drops duplicates by their similarity; ours leaves out by position alone")
    return case.apply(
        MultiSimilarityLoss(case["SCALE_POS"], case["SCALE_NEG"], case["thresh"], epsilon=case["margin"])
    )


def scaled_multi_similarity_without_mining(case: Any) -> Tensor:
    return case.apply(MultiSimilarityLoss(case["SCALE_POS"], case["SCALE_NEG"], case["thresh"], epsilon=None))


def multi_similarity(case: Any) -> Tensor:
    epsilon = case.get("epsilon")
    return case.apply(MultiSimilarityLoss(case["alpha"], case["beta"], case["base"], epsilon=epsilon))


def multi_similarity_of_kept(case: Any) -> Tensor:
    return case.apply(
        MultiSimilarityLoss(
            case["pos_weight"], case["neg_weight"], case["thresh"], epsilon=case["margin"], reduction="kept"
        )
    )


def multi_similarity_memory(case: Any) -> Tensor:
    return through_memory(case, MultiSimilarityLoss(**case.called("wrapped loss"), epsilon=None))


def triplet_all(case: Any) -> Tensor:
    return case.apply(
        TripletLoss(
            case["margin"],
            mining="all",
            form=FORMS[case.get("distance", "L2")],
            soft_margin=case.get("smooth_loss", False),
            reduction=REDUCERS[case.get("reducer", "nonzero")],
            swap=case.get("swap", False),
        )
    )


def triplet_memory(case: Any) -> Tensor:
    loss = TripletLoss(case.called("wrapped loss")["margin"], "all", "distance")
    return through_memory(case, loss)


def triplet_mined(case: Any) -> Tensor:
    mining = MINERS[case["type_of_triplets"]]
    return case.apply(TripletLoss(case["margin"], mining=mining, form="distance"))


def triplet_given(case: Any) -> Tensor:
    loss = TripletLoss(
        case["loss_triplet_margin"], form="squared_distance", reduction="mean", normalize=False
    )
    case.as_given = True
    anchor, positive, negative = (case.embeddings[rows] for rows in torch.tensor(case.fields["triplets"]).T)
    return loss.of_distances((anchor - positive).square().sum(1), (anchor - negative).square().sum(1))


def triplet_unnormalised_all(case: Any) -> Tensor:
    return case.apply(TripletLoss(case["margin"], "all", form="distance", reduction="mean", normalize=False))


def batch_hard(case: Any) -> Tensor:
    """Hermans et al. on rows as given; no margin means the soft form; an anchor alone in its class pushes."""
    margin = case.get("margin")
    return case.apply(
        TripletLoss(
            margin or 0.0,
            "hard",
            form="squared_distance" if "squared" in case.variant else "distance",
            soft_margin=margin is None,
            reduction="mean",
            singletons="push",
            normalize=False,
        )
    )


def pml_batch_hard(case: Any) -> Tensor:
    return case.apply(TripletLoss(case["margin"], "hard", form="distance"))


def facenet(case: Any) -> Tensor:
    form = FORMS[case["distance_metric"]]
    return case.apply(TripletLoss(case["margin"], "semihard", form=form, reduction="mean", normalize=False))


def easy_positive(case: Any) -> Tensor:
    return case.apply(TripletLoss(case["margin"], "easy_positive", form="distance"))


def through_memory(case: Any, loss: PairLoss) -> Tensor:
    return case.through_memory(loss)


ADAPTERS: dict[tuple[str, str], Callable[[Any], Tensor]] = {
    ("contrastive", "cosine_deep_metric"): cosine_contrastive,
    ("contrastive", "cosine_deep_metric_b"): cosine_contrastive,
    ("contrastive", "cosine_pml"): hinge_contrastive,
    ("contrastive", "cosine_roadmap_pairloss"): cosine_contrastive,
    ("contrastive", "cosine_xbm"): cosine_contrastive,
    ("contrastive", "distance_pml"): distance_contrastive,
    ("contrastive", "distance_pml_one_pair_each"): distance_contrastive,
    ("contrastive", "distance_pml_squared_mean"): distance_contrastive,
    ("contrastive", "pml_cross_batch_memory"): contrastive_memory,
    ("contrastive", "pml_cross_batch_memory_batch_of_one"): contrastive_memory_of_single_rows,
    ("multi_similarity", "ms_loss"): scaled_multi_similarity,
    ("multi_similarity", "pml"): multi_similarity,
    ("multi_similarity", "pml_cross_batch_memory"): multi_similarity_memory,
    ("multi_similarity", "pml_miner"): multi_similarity,
    ("multi_similarity", "revisiting"): multi_similarity_of_kept,
    ("multi_similarity", "xbm"): scaled_multi_similarity,
    ("multi_similarity", "xbm_no_mining"): scaled_multi_similarity_without_mining,
    ("triplet", "oml_all_mean"): triplet_unnormalised_all,
    ("triplet", "pml_all"): triplet_all,
    ("triplet", "pml_all_cosine"): triplet_all,
    ("triplet", "pml_all_mean"): triplet_all,
    ("triplet", "pml_all_soft"): triplet_all,
    ("triplet", "pml_all_squared"): triplet_all,
    ("triplet", "pml_all_swap"): triplet_all,
    ("triplet", "pml_cross_batch_memory"): triplet_memory,
    ("triplet", "pml_miner_all"): triplet_mined,
    ("triplet", "revisiting_given_triplets"): triplet_given,
    ("triplet_hard", "oml_hard_mean"): batch_hard,
    ("triplet_hard", "oml_hard_soft"): batch_hard,
    ("triplet_hard", "pml_batch_hard"): pml_batch_hard,
    ("triplet_hard", "pml_miner_hard"): triplet_mined,
    ("triplet_hard", "tfa_L2"): batch_hard,
    ("triplet_hard", "tfa_soft"): batch_hard,
    ("triplet_hard", "tfa_squared_L2"): batch_hard,
    ("triplet_semihard", "facenet_tfa_L2"): facenet,
    ("triplet_semihard", "facenet_tfa_squared_L2"): facenet,
    ("triplet_semihard", "pml_batch_easy_semihard"): easy_positive,
    ("triplet_semihard", "pml_miner_semihard"): triplet_mined,
}

_NO_NEGATIVE = "invents a negative where the batch has none; ours forms no triplet"

# (system, variant) or (system, variant, scenario) -> why not
NOT_OFFERED: dict[tuple[str, ...], str] = {
    ("multi_similarity", "pml_cross_batch_memory_miner"): "lets an anchor's own copy steer the mining",
    ("triplet", "pml_miner_easy"): "keeps the satisfied triplets only: always 0",
    ("triplet", "xbm"): "no triplet loss: a contrastive loss with a fixed mining threshold of 0.6",
    ("triplet_hard", "tfa_L2", "single_class"): _NO_NEGATIVE,
    ("triplet_hard", "tfa_squared_L2", "single_class"): _NO_NEGATIVE,
    ("triplet_semihard", "facenet_tfa_L2", "single_class"): _NO_NEGATIVE,
    ("triplet_semihard", "facenet_tfa_squared_L2", "single_class"): _NO_NEGATIVE,
}

_METRICS = "metrics are compared in tests/evaluation"

# system -> why none of its cases is compared here
NOT_YET: dict[str, str] = {
    "hyperbolic_ntxent": "hyperbolic distances are not offered",
    "snr_contrastive": "distances of centred rows need every reference's own norm: a copy of the memory",
    "clustering": _METRICS,
    "retrieval": _METRICS,
}

# The other losses' adapters and those of miners, in files beside this one.
for _path in sorted(Path(__file__).parent.glob("adapters_*.py")):
    _module = runpy.run_path(str(_path))
    ADAPTERS.update(_module["ADAPTERS"])
    NOT_OFFERED.update(_module.get("NOT_OFFERED", {}))


def reason_to_skip(system: str, *variant_and_scenario: str) -> str | None:
    """Why this case is not compared; None: it is."""
    if system in NOT_YET:
        return NOT_YET[system]
    for n in (1, 2):
        key = (system, *variant_and_scenario[:n])
        if key in NOT_OFFERED:
            return f"not offered: {NOT_OFFERED[key]}"
    return None

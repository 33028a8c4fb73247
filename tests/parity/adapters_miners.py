"""Adapters of miners: each returns sets of index tuples under the names that the case has for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deepmetric.losses import mining

Sets = dict[str, set[tuple[int, ...]]]


def mined(case: Any, miner: Callable[..., mining.Triplets | mining.PairIndices], **settings: Any) -> Sets:
    found = miner(
        case.embeddings, case.labels, case.ref_embeddings, case.ref_labels, case.self_in_ref, **settings
    )
    if isinstance(found, mining.Triplets):
        return {"triplets": tuples(*found)}
    return {"positive_pairs": tuples(*found[:2]), "negative_pairs": tuples(*found[2:])}


def tuples(*columns: Tensor) -> set[tuple[int, ...]]:
    rows = list(zip(*(column.tolist() for column in columns)))
    assert len(rows) == len(set(rows)), "an index twice"
    return set(rows)


def multi_similarity(case: Any) -> Sets:
    return mined(case, mining.multi_similarity, epsilon=case["epsilon"])


def triplet_margin(case: Any) -> Sets:
    form = "cosine" if "cosine" in case.variant else "distance"
    return mined(case, mining.triplet_margin, margin=case["margin"], kind=case["type_of_triplets"], form=form)


def pair_margin(case: Any) -> Sets:
    margins = {"positive_margin": case["pos_margin"], "negative_margin": case["neg_margin"]}
    return mined(
        case, mining.pair_margin, **margins, form="cosine" if "cosine" in case.variant else "distance"
    )


def batch_hard(case: Any) -> Sets:
    return mined(case, mining.batch_hard, normalize=case.variant == "pml")


def batch_easy_hard(case: Any) -> Sets:
    return mined(case, mining.batch_easy_hard, positive=case["pos_strategy"], negative=case["neg_strategy"])


def hdc(case: Any) -> Sets:
    found = mined(case, mining.hdc, share=case["filter_percentage"])
    if case.ref_embeddings is None:
        # (i, j) and (j, i) are equally far; where only one of them is kept, either may be.
        for name, ours in found.items():
            theirs = {tuple(pair) for pair in case.fields[name]}
            found[name] = {pair if pair in theirs else pair[::-1] for pair in ours}
    return found


def n_hard(case: Any) -> Sets:
    ranks = {
        ours: tuple(case[theirs]) if isinstance(case[theirs], list) else case[theirs]
        for ours, theirs in (("positives", "n_positive"), ("negatives", "n_negative"))
    }
    return mined(case, mining.n_hard, **ranks, normalize=False)


def angular(case: Any) -> Sets:
    return mined(case, mining.angular, angle=case["angle"], normalize=False)


ADAPTERS: dict[tuple[str, str], Callable[[Any], Sets]] = {
    ("miner_angular", "pml"): angular,
    ("miner_batch_easy_hard", "pml_all_hard"): batch_easy_hard,
    ("miner_batch_easy_hard", "pml_easy_all"): batch_easy_hard,
    ("miner_batch_easy_hard", "pml_easy_hard"): batch_easy_hard,
    ("miner_batch_easy_hard", "pml_easy_semihard"): batch_easy_hard,
    ("miner_batch_easy_hard", "pml_hard_easy"): batch_easy_hard,
    ("miner_batch_easy_hard", "pml_semihard_hard"): batch_easy_hard,
    ("miner_batch_hard", "oml"): batch_hard,
    ("miner_batch_hard", "pml"): batch_hard,
    ("miner_hdc", "pml"): hdc,
    ("miner_multi_similarity", "pml"): multi_similarity,
    ("miner_n_hard", "oml"): n_hard,
    ("miner_pair_margin", "pml"): pair_margin,
    ("miner_pair_margin", "pml_cosine"): pair_margin,
    ("miner_triplet_margin", "pml_all"): triplet_margin,
    ("miner_triplet_margin", "pml_all_cosine"): triplet_margin,
    ("miner_triplet_margin", "pml_easy"): triplet_margin,
    ("miner_triplet_margin", "pml_hard"): triplet_margin,
    ("miner_triplet_margin", "pml_semihard"): triplet_margin,
    ("miner_triplet_margin", "pml_semihard_cosine"): triplet_margin,
}

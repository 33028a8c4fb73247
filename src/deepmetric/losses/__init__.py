"""Embeddings and labels to one number to be minimised. Needs torch alone.

Every pair loss is called as ``loss(embeddings, labels)``, or against a reference set as
``loss(embeddings, labels, ref_emb=..., ref_labels=...)``; see :class:`deepmetric.losses.base.PairLoss`.
"""

from __future__ import annotations

from deepmetric.losses.base import PairLoss
from deepmetric.losses.binomial import BinomialDevianceLoss
from deepmetric.losses.contrastive import ContrastiveLoss
from deepmetric.losses.hard_mining import HardMiningLoss
from deepmetric.losses.lifted import LiftedStructureLoss
from deepmetric.losses.margin import MarginLoss
from deepmetric.losses.memory import CrossBatchMemory
from deepmetric.losses.multi_similarity import MultiSimilarityLoss
from deepmetric.losses.nca import NCALoss
from deepmetric.losses.sampling import distance_log_weight, distance_weighted_sampling
from deepmetric.losses.triplet import TripletLoss

__all__ = [
    "BinomialDevianceLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "HardMiningLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "PairLoss",
    "TripletLoss",
    "distance_log_weight",
    "distance_weighted_sampling",
]

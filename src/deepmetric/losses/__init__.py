"""Embeddings and labels to one number to be minimised. Needs torch alone.

Every pair loss is called as ``loss(embeddings, labels)``, or against a reference set as
``loss(embeddings, labels, ref_emb=..., ref_labels=...)``; see :class:`deepmetric.losses.base.PairLoss`. Losses with a
vector for each class are ``loss(embeddings, labels)`` with labels 0 ... C - 1; see
:class:`deepmetric.losses.proxies.ClassLoss`.
"""

from __future__ import annotations

from deepmetric.losses.across_processes import across_processes
from deepmetric.losses.angular import AngularLoss
from deepmetric.losses.base import PairLoss
from deepmetric.losses.bier import BIERLoss
from deepmetric.losses.binomial import BinomialDevianceLoss
from deepmetric.losses.circle import CircleLoss
from deepmetric.losses.class_tree import ClassTree
from deepmetric.losses.classes import set_classes
from deepmetric.losses.clustering import ClusteringLoss
from deepmetric.losses.contrastive import ContrastiveLoss
from deepmetric.losses.diversity import ActivationDiversity, AdversarialDiversity
from deepmetric.losses.general_pair_weighting import GeneralPairWeighting
from deepmetric.losses.hard_mining import HardMiningLoss
from deepmetric.losses.hdc import HDCLoss
from deepmetric.losses.hierarchical_triplet import HierarchicalTripletLoss
from deepmetric.losses.intra_pair_variance import IntraPairVarianceLoss
from deepmetric.losses.lifted import LiftedStructureLoss
from deepmetric.losses.margin import MarginLoss
from deepmetric.losses.memory import CrossBatchMemory
from deepmetric.losses.multi_similarity import MultiSimilarityLoss
from deepmetric.losses.nca import NCALoss
from deepmetric.losses.npairs import NPairsLoss
from deepmetric.losses.ntxent import NTXentLoss
from deepmetric.losses.proxies import (
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
from deepmetric.losses.ranked_list import RankedListLoss
from deepmetric.losses.ranking import (
    FastAPLoss,
    HistogramLoss,
    PNPLoss,
    PrecisionAtKLoss,
    RecallAtKLoss,
    ROADMAPLoss,
    SmoothAPLoss,
    SupAPLoss,
    similarity_mixup,
)
from deepmetric.losses.regularizers import GlobalOrthogonalLoss, IntraClassVarianceLoss
from deepmetric.losses.sampling import distance_log_weight, distance_weighted_sampling
from deepmetric.losses.supcon import SupConLoss
from deepmetric.losses.triplet import TripletLoss
from deepmetric.losses.triplet_global import TripletGlobalLoss
from deepmetric.losses.tuplet_margin import TupletMarginLoss
from deepmetric.losses.weighted_sum import WeightedSum

__all__ = [
    "ActivationDiversity",
    "AdversarialDiversity",
    "AngularLoss",
    "ArcFaceLoss",
    "BIERLoss",
    "BinomialDevianceLoss",
    "CircleLoss",
    "ClassLoss",
    "ClassTree",
    "ClusteringLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "FastAPLoss",
    "GeneralPairWeighting",
    "GlobalOrthogonalLoss",
    "HDCLoss",
    "HardMiningLoss",
    "HierarchicalTripletLoss",
    "HistogramLoss",
    "IntraClassVarianceLoss",
    "IntraPairVarianceLoss",
    "LargeMarginSoftmaxLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "PNPLoss",
    "PairLoss",
    "PrecisionAtKLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "ROADMAPLoss",
    "RankedListLoss",
    "RecallAtKLoss",
    "SmoothAPLoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
    "SupAPLoss",
    "SupConLoss",
    "TripletGlobalLoss",
    "TripletLoss",
    "TupletMarginLoss",
    "WeightedSum",
    "across_processes",
    "distance_log_weight",
    "distance_weighted_sampling",
    "set_classes",
    "similarity_mixup",
]

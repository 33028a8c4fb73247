"""Losses that approximate a ranking metric: average precision, recall at k, the order of pairs."""

from __future__ import annotations

from deepmetric.losses.ranking.fast_ap import FastAPLoss
from deepmetric.losses.ranking.histogram import HistogramLoss
from deepmetric.losses.ranking.pnp import PNPLoss
from deepmetric.losses.ranking.precision_at_k import PrecisionAtKLoss
from deepmetric.losses.ranking.recall_at_k import RecallAtKLoss
from deepmetric.losses.ranking.simix import similarity_mixup
from deepmetric.losses.ranking.smooth_ap import SmoothAPLoss
from deepmetric.losses.ranking.sup_ap import ROADMAPLoss, SupAPLoss

__all__ = [
    "FastAPLoss",
    "HistogramLoss",
    "PNPLoss",
    "PrecisionAtKLoss",
    "ROADMAPLoss",
    "RecallAtKLoss",
    "SmoothAPLoss",
    "SupAPLoss",
    "similarity_mixup",
]

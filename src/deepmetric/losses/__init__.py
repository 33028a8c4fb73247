"""Embeddings and labels to one number to be minimised. Needs torch alone.

Every pair loss is called as ``loss(embeddings, labels)``, or against a reference set as
``loss(embeddings, labels, ref_emb=..., ref_labels=...)``; see :class:`deepmetric.losses.base.PairLoss`.
"""

from __future__ import annotations

from deepmetric.losses.base import PairLoss
from deepmetric.losses.contrastive import ContrastiveLoss
from deepmetric.losses.memory import CrossBatchMemory
from deepmetric.losses.multi_similarity import MultiSimilarityLoss
from deepmetric.losses.triplet import TripletLoss

__all__ = ["ContrastiveLoss", "CrossBatchMemory", "MultiSimilarityLoss", "PairLoss", "TripletLoss"]

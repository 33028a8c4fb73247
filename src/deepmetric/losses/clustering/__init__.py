"""Facility-location clustering loss: medoids found on the batch's distance matrix, scored against its classes."""

from __future__ import annotations

from deepmetric.losses.clustering.loss import ClusteringLoss
from deepmetric.losses.clustering.medoids import Clustering, greedy_medoids, refine_medoids
from deepmetric.losses.clustering.mutual_information import Normalizer

__all__ = ["Clustering", "ClusteringLoss", "Normalizer", "greedy_medoids", "refine_medoids"]

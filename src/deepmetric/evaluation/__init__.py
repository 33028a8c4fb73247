"""How good a metric is: exact retrieval metrics of embeddings, of a model, and intervals around them."""

from __future__ import annotations

from deepmetric.evaluation.bootstrap import class_bootstrap
from deepmetric.evaluation.clustering import cluster, clustering_metrics
from deepmetric.evaluation.embed import embed_dataset
from deepmetric.evaluation.evaluate import evaluate_embeddings, evaluate_model
from deepmetric.evaluation.metrics import RetrievalMetrics, retrieval_metrics

__all__ = [
    "RetrievalMetrics",
    "class_bootstrap",
    "cluster",
    "clustering_metrics",
    "embed_dataset",
    "evaluate_embeddings",
    "evaluate_model",
    "retrieval_metrics",
]

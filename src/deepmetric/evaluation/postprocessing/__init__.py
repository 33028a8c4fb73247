"""What may be done to embeddings after the model and before the ranking, measured like everything else.

Each is a function of arrays (or a similarity for :func:`~deepmetric.evaluation.retrieval_metrics`), so that it can
be used on vectors of any origin; ``deepmetric evaluate --post`` shows each beside the plain result.
"""

from __future__ import annotations

from deepmetric.evaluation.postprocessing.chain import Chain, parse_chain
from deepmetric.evaluation.postprocessing.expansion import database_augmentation, query_expansion
from deepmetric.evaluation.postprocessing.k_reciprocal import KReciprocal
from deepmetric.evaluation.postprocessing.views import Views
from deepmetric.evaluation.postprocessing.whitening import Whitening

__all__ = [
    "Chain",
    "KReciprocal",
    "Views",
    "Whitening",
    "database_augmentation",
    "parse_chain",
    "query_expansion",
]

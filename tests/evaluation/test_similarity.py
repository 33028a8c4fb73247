"""How exact the products are, and what counts as equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepmetric.evaluation import retrieval_metrics


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("d", [512, 4096])
def test_a_collapsed_wide_float64_model_scores_nothing(d: int, similarity: str) -> None:
    """The wider the rows, the further rounding sets their copies apart."""
    labels = np.arange(1003) // 4
    for seed in range(2):
        x = np.random.default_rng(seed).normal(size=(1, d)).repeat(len(labels), axis=0)
        own = np.arange(len(labels))
        assert retrieval_metrics(x, labels, similarity=similarity)["recall@8"] == 0
        m = retrieval_metrics(x, labels, x, labels, self_index=own, similarity=similarity)
        assert m["recall@8"] == 0


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch before 2.9")
@pytest.mark.parametrize("backend", ["cuda", "mkldnn"])
def test_precision_set_for_one_backend(backend: str) -> None:
    """torch then refuses to tell the precision of all."""
    x, labels = torch.randn(40, 8), np.arange(40) // 4
    want = retrieval_metrics(x, labels)
    matmul = getattr(torch.backends, backend).matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        assert retrieval_metrics(x, labels) == want
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before

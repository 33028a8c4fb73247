from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def clustered() -> tuple[np.ndarray, np.ndarray]:
    """5,000 vectors as a trained model gives them: 500 classes, loose enough that neighbours mix."""
    rng = np.random.default_rng(0)
    labels = np.arange(5000) % 500
    x = rng.normal(size=(500, 32))[labels] + 0.6 * rng.normal(size=(5000, 32))
    return x.astype(np.float32), labels


@pytest.fixture
def small_model():
    import torch

    from deepmetric.models import EmbeddingModel

    torch.manual_seed(0)
    return EmbeddingModel(backbone_args={"blocks": 2, "width": 8}, size=16, embedding_dim=8).eval()

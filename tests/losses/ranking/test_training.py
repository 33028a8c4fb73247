"""Each ranking or clustering loss, set as in its recipe, orders held-out images of digits far better than untrained."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from deepmetric.losses import (
    ClusteringLoss,
    FastAPLoss,
    HistogramLoss,
    PNPLoss,
    RecallAtKLoss,
    ROADMAPLoss,
    SmoothAPLoss,
)

LOSSES = {
    "fast_ap": FastAPLoss(),
    "smooth_ap": SmoothAPLoss(count_query=True),
    "roadmap": ROADMAPLoss({"count_query": True}),
    "recall_at_k": RecallAtKLoss(simix=True),
    "histogram": HistogramLoss(),
    "pnp": PNPLoss(count_query=True),
    "clustering": ClusteringLoss(),
}


def map_at_r(rows: Tensor, labels: Tensor) -> float:
    similarity = nn.functional.normalize(rows) @ nn.functional.normalize(rows).T
    order = similarity.fill_diagonal_(-torch.inf).argsort(dim=1, descending=True)
    right = (labels[order] == labels[:, None]).double()
    r = torch.bincount(labels)[labels] - 1
    place = torch.arange(1, len(labels) + 1)
    kept = right * (place <= r[:, None])
    return float(((kept.cumsum(1) / place * kept).sum(1) / r).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_training_orders_held_out_images(name: str) -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    train, test = torch.arange(0, 1797, 2), torch.arange(1, 1797, 4)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    before = map_at_r(model(x[test]).detach(), y[test])
    by_class = [train[y[train] == c] for c in range(10)]
    for _ in range(60):
        batch = torch.cat([c[torch.randperm(len(c))[:6]] for c in by_class])
        loss = LOSSES[name](model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = map_at_r(model(x[test]).detach(), y[test])
    assert after > before + 0.25

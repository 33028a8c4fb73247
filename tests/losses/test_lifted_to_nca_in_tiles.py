"""Lifted, binomial, hard mining, margin and NCA losses over tiles, however they are cut, against one matrix."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from deepmetric.losses import (
    BinomialDevianceLoss,
    HardMiningLoss,
    LiftedStructureLoss,
    MarginLoss,
    NCALoss,
    PairLoss,
)
from deepmetric.losses.streamed import Comparison

LOSSES = {
    "lifted": LiftedStructureLoss(),
    "lifted squared": LiftedStructureLoss(distance="squared_distance", normalize=True),
    "lifted generalized": LiftedStructureLoss("generalized", incomplete="count"),
    "lifted modified": LiftedStructureLoss("modified"),
    "lifted modified, mined": LiftedStructureLoss("modified", epsilon=0.4),
    "binomial": BinomialDevianceLoss(base=0.25),
    "binomial mined": BinomialDevianceLoss(epsilon=0.4, scaled=True),
    "binomial pairs": BinomialDevianceLoss(reduction="pairs"),
    "hard mining": HardMiningLoss(0.4),
    "margin all": MarginLoss(beta=[0.9, 1.1, 1.2, 1.3], learn_beta=True, nu=0.1, sampling="all").double(),
    "margin triplets": MarginLoss(sampling="all", reduction="triplets"),
    "nca": NCALoss(4.0),
    "nca expected": NCALoss(4.0, "expected", "cosine"),
    "nca nearest": NCALoss(4.0, neighbours=5),
    "nca nearest, not normalised": NCALoss(1.0, "expected", neighbours=3, normalize=False),
}


def value_and_gradients(loss: PairLoss, batch: tuple[Tensor, ...]) -> list[Tensor]:
    batch = tuple(t.clone().requires_grad_() if t.dtype.is_floating_point else t for t in batch)
    value = loss(*batch)
    leaves = [t for t in batch if t.dtype.is_floating_point] + list(loss.parameters())
    return [value, *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize(("width", "listed"), [(3, 2**18), (5, 0), (64, 0)])
@pytest.mark.parametrize("against", ["itself", "memory", "memory with copies", "one class"])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_equal_the_matrix(name, against, width, listed, random_batch, monkeypatch):
    loss = LOSSES[name]
    x, labels = random_batch(0, n=11, classes=4, copies=2)
    refs, ref_labels = random_batch(1, n=17, classes=4)
    labels, ref_labels = (labels + 3) // 7, (ref_labels + 3) // 7
    batch: tuple[Tensor, ...] = (x, labels)
    if against == "one class":
        batch = (x, torch.zeros_like(labels))
    elif against == "memory":
        batch = (x, labels, refs, ref_labels)
    elif against == "memory with copies":
        own = torch.arange(11) + 17
        own[2] = -1
        batch = (x, labels, torch.cat([refs, x]), torch.cat([ref_labels, labels]), own)
    wanted = value_and_gradients(loss, batch)
    cut = partial(Comparison, width=width, listed=listed)
    monkeypatch.setattr(f"{type(loss).__module__}.Comparison", cut)
    for one, other in zip(value_and_gradients(loss, batch), wanted):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_memory_takes_no_copy_of_its_own(name, random_batch):
    """A constant memory in bfloat16 is as good as its float32 copy."""
    loss = LOSSES[name]
    x, labels = random_batch(2, n=6, classes=4)
    refs, ref_labels = random_batch(3, n=20, classes=4)
    x, refs, labels, ref_labels = x.float(), refs.bfloat16(), (labels + 3) // 7, (ref_labels + 3) // 7
    one, other = loss(x, labels, refs, ref_labels), loss(x, labels, refs.float(), ref_labels)
    torch.testing.assert_close(one, other)

"""N-pairs to ranked list over tiles, however they are cut, against one matrix."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from deepmetric.losses import (
    AngularLoss,
    CircleLoss,
    GeneralPairWeighting,
    IntraPairVarianceLoss,
    NPairsLoss,
    NTXentLoss,
    PairLoss,
    RankedListLoss,
    SupConLoss,
    TupletMarginLoss,
)
from deepmetric.losses.streamed import Comparison


class Steep(GeneralPairWeighting):
    def statistics(self, pairs: Comparison) -> tuple[Tensor, ...]:
        return (torch.nn.functional.softplus(pairs.negatives.logsumexp(5.0)),)

    def positive_weight(self, similarity: Tensor, total: Tensor) -> Tensor:
        return (1 - similarity) * torch.sigmoid(total)

    def negative_weight(self, similarity: Tensor, total: Tensor) -> Tensor:
        return torch.exp(5 * similarity - total)


LOSSES = {
    "npairs first": NPairsLoss(),
    "npairs": NPairsLoss("all", l2_weight=0.1),
    "npairs of unit rows": NPairsLoss("all", normalize=True),
    "ntxent": NTXentLoss(),
    "supcon": SupConLoss(),
    "supcon anchors": SupConLoss(0.5, 0.07, "anchors"),
    "circle": CircleLoss(),
    "circle batch": CircleLoss(0.25, 16.0, "batch"),
    "tuplet margin": TupletMarginLoss(),
    "intra-pair variance": IntraPairVarianceLoss(),
    "angular": AngularLoss(),
    "ranked list": RankedListLoss(Tp=1.0),
    "general pair weighting": Steep(),
}


def value_and_gradients(loss: PairLoss, batch: tuple[Tensor, ...], constant_refs: bool) -> list[Tensor]:
    batch = tuple(
        t.clone().requires_grad_(not (constant_refs and i)) if t.dtype.is_floating_point else t
        for i, t in enumerate(batch)
    )
    value = loss(*batch)
    return [value, *torch.autograd.grad(value, [t for t in batch if t.requires_grad])]


@pytest.mark.parametrize(("width", "listed"), [(3, 2**18), (5, 0), (64, 0)])
@pytest.mark.parametrize(
    "against", ["itself", "memory", "constant memory with copies", "one class", "one class with positives"]
)
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_equal_the_matrix(name, against, width, listed, random_batch, monkeypatch):
    loss = LOSSES[name]
    x, labels = random_batch(0, n=11, classes=4, copies=2)
    refs, ref_labels = random_batch(1, n=17, classes=4)
    batch: tuple[Tensor, ...] = (x, labels)
    if against == "one class":
        batch = (x, torch.zeros_like(labels))
    elif against == "one class with positives":
        batch = (x, labels, refs, torch.where(ref_labels == labels[0], ref_labels, ref_labels + 1))
    elif against == "memory":
        batch = (x, labels, refs, ref_labels)
    elif against == "constant memory with copies":
        own = torch.arange(11) + 17
        own[2] = -1
        batch = (x, labels, torch.cat([refs, x]), torch.cat([ref_labels, labels]), own)
    constant = against.startswith("constant")
    wanted = value_and_gradients(loss, batch, constant)
    cut = partial(Comparison, width=width, listed=listed)
    home = next(c for c in type(loss).__mro__ if c.__module__.startswith("deepmetric.")).__module__
    monkeypatch.setattr(f"{home}.Comparison", cut)
    for one, other in zip(value_and_gradients(loss, batch, constant), wanted):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_memory_takes_no_copy_of_its_own(name, random_batch):
    """A constant memory in bfloat16, not normalised, is as good as its float32 copy, by one matrix and by tiles."""
    loss = LOSSES[name]
    for m in (20, 20000):
        x, labels = random_batch(2, n=6, classes=4)
        refs, ref_labels = random_batch(3, n=m, classes=4)
        x, refs = x.float(), refs.bfloat16()
        one, other = loss(x, labels, refs, ref_labels), loss(x, labels, refs.float(), ref_labels)
        torch.testing.assert_close(one, other)

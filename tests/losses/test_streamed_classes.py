"""The losses that stand on the streamed operator against their dense forms, however the pairs are cut."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from deepmetric.losses import ContrastiveLoss, MultiSimilarityLoss, PairLoss, TripletLoss
from deepmetric.losses.inputs import Batch, checked_batch
from deepmetric.losses.streamed import Comparison

OF_COSINES = st.sampled_from(["cosine", "cosine_hinge"])
OF_DISTANCES = st.sampled_from(["distance", "squared_distance", "hadsell"])
REDUCTIONS = st.sampled_from(["anchors", "nonzero", "mean"])
LOSSES = {
    "contrastive of cosines": st.builds(
        ContrastiveLoss, OF_COSINES, st.sampled_from([0.95, 0.7]), st.sampled_from([0.5, -0.3]), REDUCTIONS
    ),
    "contrastive of distances": st.builds(
        ContrastiveLoss, OF_DISTANCES, st.sampled_from([0.0, 0.4]), st.sampled_from([1.0, 1.7]), REDUCTIONS
    ),
    "multi-similarity": st.builds(
        MultiSimilarityLoss,
        st.sampled_from([2.0, 7.0]),
        st.sampled_from([50.0, 90.0]),
        st.sampled_from([0.5, 0.1]),
        st.sampled_from([None, 0.1, 0.4]),
        st.sampled_from(["anchors", "kept"]),
    ),
    "triplet": st.builds(
        TripletLoss,
        st.sampled_from([0.0, 0.2, 1.0, -0.1]),
        st.sampled_from(["all", "semihard", "semihard_band", "hard", "hard_band", "easy_positive"]),
        st.sampled_from(["distance", "squared_distance", "cosine"]),
        soft_margin=st.booleans(),
        reduction=st.sampled_from(["nonzero", "mean"]),
        swap=st.sampled_from([False, False, True]),
        singletons=st.sampled_from(["skip", "push"]),
        normalize=st.booleans(),
    ),
}


def problem(seed: int, n: int, m: int, classes: int, copies: bool) -> Batch:
    """``m`` = 0: the batch with itself."""
    generator = torch.Generator().manual_seed(seed)
    x, refs = (torch.randn(k, 5, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    if copies:
        x[n - 1] = x[0]
    if not m:
        return checked_batch(x.requires_grad_(), labels)
    if copies:
        refs[m // 2], refs[m - 1] = refs[0], x[0]
    own = torch.randint(-1, m, (n,), generator=generator)
    refs[own[own >= 0]] = x[own >= 0]
    return checked_batch(x.requires_grad_(), labels, refs.requires_grad_(), ref_labels, own)


def results(loss: PairLoss, batch: Batch, of_batch) -> list[torch.Tensor]:
    value = of_batch(batch)
    leaves = [batch.anchors] if batch.refs is batch.anchors else [batch.anchors, batch.refs]
    return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_streamed_is_dense(dense_losses: ModuleType, name: str, data: st.DataObject) -> None:
    loss = data.draw(LOSSES[name])
    n, m = data.draw(st.integers(1, 14)), data.draw(st.integers(0, 40))
    # Random rows never tie; exact copies do, and then which of them takes the gradient is open.
    copies = data.draw(st.booleans())
    batch = problem(data.draw(st.integers(0, 2**31)), n, m, data.draw(st.integers(1, 8)), copies)
    dense = results(loss, batch, lambda batch: dense_losses.DENSE[type(loss)](loss, batch))
    with pytest.MonkeyPatch.context() as patch:
        # As if the problem were large: tiles of this width, and positives listed or in blocks of classes.
        defaults = dict(Comparison.__init__.__kwdefaults__ or {})
        defaults["width"] = data.draw(st.sampled_from([None, 1, 3, 16, 64]))
        defaults["listed"] = data.draw(st.sampled_from([0, 2**20]))
        patch.setattr(Comparison.__init__, "__kwdefaults__", defaults)
        streamed = results(loss, batch, loss.of_batch)
    for ours, theirs in zip(streamed[: 1 if copies else None], dense):
        assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "loss",
    [
        ContrastiveLoss("distance"),
        MultiSimilarityLoss(),
        TripletLoss(mining="all"),
        TripletLoss(mining="semihard"),
    ],
    ids=repr,
)
def test_large_and_in_float32(dense_losses: ModuleType, loss: PairLoss, dtype: torch.dtype) -> None:
    """A memory past the size of one matrix and many to a class, in the store's precision."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 16, generator=generator)
    labels, ref_labels = torch.arange(48) % 40, torch.randint(40, (5000,), generator=generator)
    x = (centres[labels] + torch.randn(48, 16, generator=generator)).requires_grad_()
    refs = (centres[ref_labels] + torch.randn(5000, 16, generator=generator)).to(dtype)
    value = loss(x, labels, refs, ref_labels)
    wide = x.detach().double().requires_grad_()
    batch = checked_batch(wide, labels, refs.double(), ref_labels)
    truth = dense_losses.DENSE[type(loss)](copy.copy(loss), batch)
    assert_close(value, truth.float(), atol=1e-5, rtol=1e-5)
    gradient, wanted = torch.autograd.grad(value, x)[0], torch.autograd.grad(truth, wide)[0].float()
    # Of two negatives that are equally near in float32 either may be the one that is pushed.
    one_negative = getattr(loss, "mining", "") == "semihard"
    assert (gradient - wanted).norm() <= (2e-2 if one_negative else 1e-4) * wanted.norm()

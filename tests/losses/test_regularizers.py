"""Regularisers against their definitions, and the sum of losses against its parts."""

from __future__ import annotations

import pytest
import torch

from deepmetric.errors import InputError
from deepmetric.losses import (
    ContrastiveLoss,
    CrossBatchMemory,
    GlobalOrthogonalLoss,
    IntraClassVarianceLoss,
    MultiSimilarityLoss,
    NormalizedSoftmaxLoss,
    WeightedSum,
    set_classes,
)


def test_variance_is_the_unbiased_variance_of_each_class(random_batch) -> None:
    rows, labels = random_batch(0, n=14)
    labels[-1] = 99  # alone: has no variance
    unit = torch.nn.functional.normalize(rows)
    members = {int(c): unit[labels == c] for c in labels.unique()}
    kept = [m for m in members.values() if len(m) > 1]
    wanted = sum(len(m) * m.var(dim=0, correction=1).sum() for m in kept) / sum(len(m) for m in kept)
    torch.testing.assert_close(IntraClassVarianceLoss()(rows, labels), wanted)


def test_orthogonality_is_of_negative_pairs(random_batch) -> None:
    rows, labels = random_batch(1, n=12)
    rows = rows + 0.5
    unit = torch.nn.functional.normalize(rows)
    values = torch.stack([unit[i] @ unit[j] for i in range(12) for j in range(12) if labels[i] != labels[j]])
    wanted = values.mean() ** 2 + (values.square().mean() - 1 / 4).clamp_min(0)
    assert values.square().mean() > 1 / 4
    torch.testing.assert_close(GlobalOrthogonalLoss()(rows, labels), wanted)


def test_uniform_directions_cost_next_to_nothing() -> None:
    rows = torch.randn(1500, 16, generator=torch.Generator().manual_seed(0))
    assert GlobalOrthogonalLoss()(rows, torch.arange(1500)).item() < 1e-3
    assert GlobalOrthogonalLoss()(rows + 1, torch.arange(1500)).item() > 0.1


def test_sum_of_weighted_parts(random_batch) -> None:
    rows, labels = random_batch(2)
    rows.requires_grad_()
    parts = [ContrastiveLoss(), MultiSimilarityLoss()]
    both = WeightedSum(parts, [0.5, 2.0])
    value = both(rows, labels)
    wanted = 0.5 * parts[0](rows, labels) + 2 * parts[1](rows, labels)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, rows), torch.autograd.grad(wanted, rows))
    refs, ref_labels = random_batch(3)
    torch.testing.assert_close(
        both(rows, labels, ref_emb=refs, ref_labels=ref_labels),
        sum(w * part(rows, labels, refs, ref_labels) for w, part in zip((0.5, 2.0), parts)),
    )
    memory = CrossBatchMemory(both, dim=4, size=10, batch_weight=0.0).double()
    torch.testing.assert_close(memory(rows, labels), both(rows, labels))


def test_parts_with_class_weights_are_told_and_trained(random_batch) -> None:
    rows, _ = random_batch(4)
    loss = WeightedSum([NormalizedSoftmaxLoss(), IntraClassVarianceLoss()])
    set_classes(loss, 3, 4)
    loss(rows.float(), torch.arange(10) % 3).backward()
    (proxies,) = loss.parameters()
    assert proxies.grad is not None
    assert proxies.grad.abs().sum() > 0


@pytest.mark.parametrize(("losses", "weights"), [([], None), ([ContrastiveLoss()], [1.0, 2.0])])
def test_weights_must_fit(losses, weights) -> None:
    with pytest.raises(InputError, match="as many `weights`"):
        WeightedSum(losses, weights)

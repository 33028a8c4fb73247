"""GeneralPairWeighting: other losses' weights, as their docstrings state them, give those losses' gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.losses import (
    CircleLoss,
    GeneralPairWeighting,
    MultiSimilarityLoss,
    NTXentLoss,
    PairLoss,
    SupConLoss,
)

T, M, GAMMA = 0.3, 0.25, 6.0


class OfMultiSimilarity(GeneralPairWeighting):
    def statistics(self, pairs) -> tuple[Tensor, ...]:
        return (
            softplus(pairs.positives.logsumexp(-2.0) + 1.0),
            softplus(pairs.negatives.logsumexp(10.0) - 5.0),
        )

    def positive_weight(self, s, positives, negatives):
        return torch.exp(-2 * (s - 0.5) - positives)

    def negative_weight(self, s, positives, negatives):
        return torch.exp(10 * (s - 0.5) - negatives)


class OfSupCon(GeneralPairWeighting):
    """The weights of positives are signed; anchors without positives have none."""

    def statistics(self, pairs) -> tuple[Tensor, ...]:
        total = torch.logaddexp(pairs.positives.logsumexp(1 / T), pairs.negatives.logsumexp(1 / T))
        count = pairs.positive_count
        some = (count > 0).to(total)
        return total, 1 / count.to(total).clamp_min(1), len(count) * some / some.sum() / T

    def positive_weight(self, s, total, even, factor):
        return factor * (even - torch.exp(s / T - total))

    def negative_weight(self, s, total, even, factor):
        return factor * torch.exp(s / T - total)


class OfNTXent(GeneralPairWeighting):
    """A negative has a weight in the term of each positive."""

    def statistics(self, pairs) -> tuple[Tensor, ...]:
        others = pairs.negatives.logsumexp(1 / T)
        shares = pairs.positives.sum(lambda s, o: 1 / (torch.exp(s / T) + torch.exp(o)), others)
        factor = len(others) / pairs.positive_count.to(others).sum() / T
        return others, shares, factor.expand(len(others))

    def positive_weight(self, s, others, shares, factor):
        return factor * torch.sigmoid(others - s / T)

    def negative_weight(self, s, others, shares, factor):
        return factor * torch.exp(s / T) * shares


class OfCircle(GeneralPairWeighting):
    def statistics(self, pairs) -> tuple[Tensor, ...]:
        positives = pairs.positives.logsumexp(fn=lambda s: GAMMA * (1 + M - s).relu() * (1 - M - s))
        negatives = pairs.negatives.logsumexp(fn=lambda s: GAMMA * (s + M).relu() * (s - M))
        both = (pairs.positive_count > 0) & (pairs.negative_count > 0)
        z = torch.sigmoid(positives + negatives) * len(both) / both.sum()
        return positives, negatives, GAMMA * z

    def positive_weight(self, s, positives, negatives, z):
        weight = (1 + M - s).relu()
        return z * weight * torch.exp(GAMMA * weight * (1 - M - s) - positives)

    def negative_weight(self, s, positives, negatives, z):
        weight = (s + M).relu()
        return z * weight * torch.exp(GAMMA * weight * (s - M) - negatives)


LOSSES: dict[str, tuple[GeneralPairWeighting, PairLoss]] = {
    "multi-similarity": (OfMultiSimilarity(), MultiSimilarityLoss(2.0, 10.0, 0.5, epsilon=None)),
    "SupCon": (OfSupCon(), SupConLoss(T)),
    "NT-Xent": (OfNTXent(), NTXentLoss(T)),
    "circle": (OfCircle(), CircleLoss(M, GAMMA)),
}


@pytest.mark.parametrize(("n", "m"), [(12, 0), (12, 20), (12, 9000)])
@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_known_losses_give_their_gradients(name, n, m, random_batch):
    """In a batch, and against references small and large enough for tiles."""
    weights, loss = LOSSES[name]
    x, labels = random_batch(0, n=n, classes=3)
    x.requires_grad_()
    batch: tuple[Tensor, ...] = (x, labels)
    if m:
        refs, ref_labels = random_batch(1, n=m, classes=5)
        refs.requires_grad_()
        batch = (x, labels, refs, ref_labels)
    leaves = [t for t in batch if t.requires_grad]
    ours = torch.autograd.grad(weights(*batch), leaves)
    theirs = torch.autograd.grad(loss(*batch), leaves)
    for one, other in zip(ours, theirs):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_value_is_the_weighted_similarity():
    class Counted(GeneralPairWeighting):
        def positive_weight(self, similarity: Tensor) -> Tensor:
            return torch.full_like(similarity, 2.0)

        def negative_weight(self, similarity: Tensor) -> Tensor:
            return similarity.square()

    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], dtype=torch.float64)
    value = Counted()(x, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((2 * (0.6**3 + 0.96**3) - 2 * 2.0 * 0.8) / 3)


def test_both_functions_must_be_given(random_batch):
    with pytest.raises(NotImplementedError):
        GeneralPairWeighting()(*random_batch(0))

"""Contrastive, triplet and multi-similarity losses over dense N x M matrices: the slow truth of the streamed ones.

``DENSE[type(loss)](loss, batch)`` is the value that ``loss`` must have. Plain torch, one matrix of values, masks of
pairs, and P x M numbers for the triplets of P positive pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepmetric.losses import ContrastiveLoss, MultiSimilarityLoss, TripletLoss
from deepmetric.losses.inputs import Batch


class Pairs(NamedTuple):
    """Which references count for which anchor. A pair of an anchor with its own copy is in neither mask."""

    positive: Tensor  # [N, M] bool, same label
    negative: Tensor  # [N, M] bool, another label


def pairs_of(batch: Batch) -> Pairs:
    """Positives and negatives by label; own copies left out by position, so duplicates stay."""
    same = batch.labels[:, None] == batch.ref_labels[None, :]
    if batch.own is None:
        return Pairs(same, ~same)
    other = batch.own[:, None] != torch.arange(len(batch.refs), device=same.device)[None, :]
    return Pairs(same & other, ~same & other)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [N, d] divided by their L2 norm. A zero row stays zero, with a finite gradient."""
    return rows / _norms(rows)[:, None]


def cosine(batch: Batch) -> Tensor:
    """Cosine similarities [N, M] of anchors and references, in [-1, 1] up to rounding.

    References are never copied: instead of unit rows, the columns of the product are divided by their norms.
    """
    if batch.refs is batch.anchors:
        unit = unit_rows(batch.anchors)
        return unit @ unit.T
    return (unit_rows(batch.anchors) @ batch.refs.T) / _norms(batch.refs)


def squared_distances(batch: Batch, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distances [N, M] of unit rows (``normalize``) or of the rows as given, and their
    noise.

    Both come from the one matrix product: D² = |x|² + |r|² - 2 x·r. A value within the rounding of that
    difference is exactly 0 with derivative 0: there the direction of the gradient is noise, and an exact copy
    must count as one. ``noise`` (broadcastable to [N, M]) is that rounding; differences below it are ties.
    """
    if normalize:
        squared = 2 - 2 * cosine(batch)
        noise = squared.new_tensor(2.0)
    else:
        anchor_norms = batch.anchors.square().sum(1)
        ref_norms = anchor_norms if batch.refs is batch.anchors else batch.refs.square().sum(1)
        squared = anchor_norms[:, None] + ref_norms[None, :] - 2 * batch.anchors @ batch.refs.T
        noise = (anchor_norms[:, None] + ref_norms[None, :]).detach()
    noise = 8 * torch.finfo(squared.dtype).eps * noise
    return torch.where(squared > noise, squared, 0), noise


def root(squared: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0, not infinite: an exact copy pulls and pushes nowhere."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


def _norms(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1)
    return torch.where(norms > 0, norms, 1)


def contrastive(loss: ContrastiveLoss, batch: Batch) -> Tensor:
    positive_cost, negative_cost = _costs(loss, batch)
    pairs: Pairs = pairs_of(batch)
    positive_cost = torch.where(pairs.positive, positive_cost, 0)
    negative_cost = torch.where(pairs.negative, negative_cost, 0)
    if loss.reduction == "anchors":
        return (positive_cost + negative_cost).sum() / max(len(batch.anchors), 1)
    if loss.reduction == "nonzero":
        pairs = Pairs(positive_cost > 0, negative_cost > 0)
    return positive_cost.sum() / pairs.positive.sum().clamp_min(
        1
    ) + negative_cost.sum() / pairs.negative.sum().clamp_min(1)


def _costs(loss: ContrastiveLoss, batch: Batch) -> tuple[Tensor, Tensor]:
    """What every pair would cost as a positive and as a negative, both [N, M]."""
    low, high = loss.positive_margin, loss.negative_margin
    if loss.form == "cosine":
        similarity = cosine(batch)
        return (low - similarity).relu(), torch.where(similarity > high, similarity, 0)
    if loss.form == "cosine_hinge":
        similarity = cosine(batch)
        return (low - similarity).relu(), (similarity - high).relu()
    distance, _ = squared_distances(batch)
    if loss.form == "squared_distance":
        return (distance - low).relu(), (high - distance).relu()
    distance = root(distance)
    if loss.form == "distance":
        return (distance - low).relu(), (high - distance).relu()
    return (distance - low).relu().square() / 2, (high - distance).relu().square() / 2


def triplet(loss: TripletLoss, batch: Batch) -> Tensor:
    distance, order, noise = _distances(loss, batch)
    pairs = pairs_of(batch)
    if distance.shape[1] == 0:
        return distance.sum()

    anchor, positive = _positive_pairs(order, pairs, loss.mining)
    to_positive, order_positive = distance[anchor, positive], order[anchor, positive]
    positive_rows = batch.refs[positive] if loss.swap else None
    if loss.singletons == "push":
        lone = (~pairs.positive.any(1)).nonzero()[:, 0]
        itself = -1.0 if loss.form == "cosine" else 0.0
        anchor = torch.cat([anchor, lone])
        to_positive = torch.cat([to_positive, to_positive.new_full((len(lone),), itself)])
        order_positive = torch.cat([order_positive, order_positive.new_full((len(lone),), itself)])
        if positive_rows is not None:
            positive_rows = torch.cat([positive_rows, batch.anchors[lone]])

    # From here on one row a positive pair, [P, M].
    to_negative = distance[anchor]
    further = order[anchor] - order_positive[:, None] > (noise[anchor] if noise.ndim else noise)
    gap = (to_negative - to_positive[:, None]).detach()
    column, chosen = _negatives(
        order[anchor], pairs.negative[anchor], further, gap <= loss.margin, loss.mining
    )
    if positive_rows is not None:
        from_positive, _, _ = _distances(loss, batch._replace(anchors=positive_rows))
        to_negative = torch.minimum(to_negative, from_positive)
    if column is not None:
        to_negative = to_negative.gather(1, column)
    return loss.of_distances(to_positive[:, None], to_negative, chosen)


def _distances(loss: TripletLoss, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """D [N, M]; the same order in a form whose rounding is known, without gradient; and that rounding."""
    if loss.form == "cosine":
        distance = -cosine(batch)
        noise = distance.new_tensor(8 * torch.finfo(distance.dtype).eps)
        return distance, distance.detach(), noise
    squared, noise = squared_distances(batch, normalize=loss.normalize)
    return (squared if loss.form == "squared_distance" else root(squared)), squared.detach(), noise


def _positive_pairs(order: Tensor, pairs: Pairs, mining: str) -> tuple[Tensor, Tensor]:
    """Anchors and positives, [P] each: all positive pairs, or one an anchor where the mining takes one."""
    if mining == "hard":
        positive = order.masked_fill(~pairs.positive, -torch.inf).argmax(1)
    elif mining == "easy_positive":
        positive = order.masked_fill(~pairs.positive, torch.inf).argmin(1)
    else:
        anchor, positive = pairs.positive.nonzero(as_tuple=True)
        return anchor, positive
    anchor = pairs.positive.any(1).nonzero()[:, 0]
    return anchor, positive[anchor]


def _negatives(
    order: Tensor, negative: Tensor, further: Tensor, within: Tensor, mining: str
) -> tuple[Tensor | None, Tensor]:
    """Which negatives each positive pair meets, all arguments [P, M].

    Either (None, mask [P, M]), or one negative a pair as (column [P, 1], whether there is one [P, 1]).
    """
    if mining == "all":
        return None, negative
    if mining == "semihard_band":
        return None, negative & further & within
    if mining == "hard_band":
        return None, negative & ~further
    if mining == "hard":
        return order.masked_fill(~negative, torch.inf).argmin(1, keepdim=True), negative.any(1, keepdim=True)
    beyond = negative & further
    nearest = order.masked_fill(~beyond, torch.inf).argmin(1, keepdim=True)
    found = beyond.any(1, keepdim=True)
    if mining == "easy_positive":
        return nearest, found
    furthest = order.masked_fill(~negative, -torch.inf).argmax(1, keepdim=True)
    return torch.where(found, nearest, furthest), negative.any(1, keepdim=True)


def multi_similarity(loss: MultiSimilarityLoss, batch: Batch) -> Tensor:
    similarity = cosine(batch)
    pairs = pairs_of(batch)
    if loss.epsilon is not None:
        pairs = mine(similarity, pairs, loss.epsilon)
    shifted = similarity - loss.base
    per_anchor = (
        log1p_sum_exp(-loss.alpha * shifted, pairs.positive) / loss.alpha
        + log1p_sum_exp(loss.beta * shifted, pairs.negative) / loss.beta
    )
    if loss.reduction == "anchors":
        return per_anchor.sum() / max(len(per_anchor), 1)
    kept = pairs.positive.any(1) & pairs.negative.any(1)
    return torch.where(kept, per_anchor, 0).sum() / kept.sum().clamp_min(1)


def mine(similarity: Tensor, pairs: Pairs, epsilon: float) -> Pairs:
    """The pairs that are hard beside the anchor's other pairs; nothing where it lacks positives or negatives.

    ``similarity`` [N, M]; the thresholds come from all pairs of an anchor and take no gradient.
    """
    similarity = similarity.detach()
    if similarity.shape[1] == 0:
        return pairs
    least_positive = similarity.masked_fill(~pairs.positive, torch.inf).amin(1, keepdim=True)
    most_negative = similarity.masked_fill(~pairs.negative, -torch.inf).amax(1, keepdim=True)
    return Pairs(
        pairs.positive & (similarity - epsilon < most_negative),
        pairs.negative & (similarity + epsilon > least_positive),
    )


def log1p_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """log(1 + Σ exp(value)) over the masked entries of each row, [N, M] -> [N]; 0 where the mask is empty.

    The 1 enters as a column of zeros, so that no row is empty and its gradient is 0 instead of NaN.
    """
    one = values.new_zeros(len(values), 1)
    return torch.cat([one, values.masked_fill(~mask, -torch.inf)], dim=1).logsumexp(1)


DENSE: dict[type, Callable[[Any, Batch], Tensor]] = {
    ContrastiveLoss: contrastive,
    MultiSimilarityLoss: multi_similarity,
    TripletLoss: triplet,
}

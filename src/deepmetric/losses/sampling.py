"""Distance-weighted sampling (Wu et al. 2017): negatives of all distances alike, not mostly of the common one."""

from __future__ import annotations

import torch
from torch import Tensor

from deepmetric.losses.inputs import checked_batch
from deepmetric.losses.streamed.dense import value_matrix
from deepmetric.losses.streamed.gradients import without_autocast
from deepmetric.losses.streamed.rows import unit_rows


@torch.no_grad()
def distance_log_weight(
    distance: Tensor, dim: int, cutoff: float = 0.5, upper_cutoff: float | None = 1.4
) -> Tensor:
    """log 1/q(D) up to a constant, q the density of distances between random points of the unit sphere.

    Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017, eq. 3-4:
    q(D) ∝ D^(d-2) (1 - D²/4)^((d-3)/2).

    Args:
        distance: Euclidean distances of unit rows, in [0, 2], any shape.
        dim: d, the width of the rows.
        cutoff: smaller distances are raised to this, so that the nearest do not take all.
        upper_cutoff: distances from here on have no weight; None: no limit.

    Returns:
        Finite numbers of the same shape, float32 at least; -1e30 without weight. At 512 dimensions they span more
        than a hundred e-folds: take off each row's maximum before the exponential.
    """
    distance = distance.to(torch.promote_types(distance.dtype, torch.float32))
    weight = squared_distance_log_weight(distance.square(), dim, cutoff)
    return weight if upper_cutoff is None else weight.add_((distance >= upper_cutoff).to(weight), alpha=-1e30)


@torch.no_grad()
def squared_distance_log_weight(
    squared: Tensor, dim: int, cutoff: float, upper_cutoff: float | None = None
) -> Tensor:
    """:func:`distance_log_weight` of squared distances, for tiles of them: the root is not needed."""
    # At distance 2 the density is 0.
    within = squared.clamp(cutoff**2, 4 - 32 * torch.finfo(squared.dtype).eps)
    weight = within.log().mul_((2 - dim) / 2)
    weight.add_(within.mul_(-0.25).add_(1).log_(), alpha=(3 - dim) / 2)
    if upper_cutoff is not None:
        # A mask of floats: boolean ones are slow on a CPU.
        weight.add_(torch.ge(squared, upper_cutoff**2, out=within), alpha=-1e30)
    return weight


@torch.no_grad()
def distance_weighted_sampling(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    cutoff: float = 0.5,
    upper_cutoff: float | None = 1.4,
) -> Tensor:
    """Probabilities [N, M] with which :class:`MarginLoss` draws reference j as the negative of anchor i.

    To look at, or to draw from in code of one's own; the loss itself draws without such a table. Rows are
    L2-normalised. Arguments are those of a pair loss; ``cutoff`` and ``upper_cutoff`` as in
    :func:`distance_log_weight`. A row sums to 1, or is 0 where the anchor has no negative below the upper
    cutoff. Each row is scaled by its own maximum, so that none underflows in many dimensions.

    Raises:
        InputError: as of a pair loss.

    >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.6, 0.8, 0.0]])
    >>> distance_weighted_sampling(x, torch.tensor([0, 1, 1]))[0]  # at d = 3 proportional to 1/D
    tensor([0.0000, 0.5858, 0.4142])
    """
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    with without_autocast(batch.anchors.device):
        refs = unit_rows(batch.refs.to(batch.anchors.dtype))
        distance = value_matrix(unit_rows(batch.anchors), refs, "distance", True)
    negative = batch.labels[:, None] != batch.ref_labels
    if batch.own is not None:
        negative &= batch.own[:, None] != torch.arange(len(batch.refs), device=negative.device)
    weight = distance_log_weight(distance, batch.anchors.shape[1], cutoff, upper_cutoff)
    admissible = negative & (weight > -1e29)
    return weight.masked_fill(~admissible, -torch.inf).softmax(1).masked_fill(~admissible, 0)


def numbered_generator(seed: int, number: int, device: torch.device) -> torch.Generator:
    """The generator of draw ``number`` of the sequence that ``seed`` names."""
    # The generators of a CPU take 32 bits of a seed; a golden-ratio step keeps neighbouring seeds apart.
    return torch.Generator(device).manual_seed((seed * 0x9E3779B1 + number) % 2**32)

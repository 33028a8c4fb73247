"""Miners of triplets out of all triplets."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.inputs import checked_batch
from deepmetric.losses.mining.blocks import Block, Form, Rows, blocks, rows_at_once
from deepmetric.losses.mining.indices import Triplets, joined

Kind = Literal["all", "easy", "hard", "semihard"]


@torch.no_grad()
def triplet_margin(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    margin: float = 0.2,
    kind: Kind = "all",
    form: Form = "distance",
    normalize: bool = True,
) -> Triplets:
    """All triplets whose gap between negative and positive, D_an - D_ap, lies in a band.

    Schroff et al., "FaceNet", CVPR 2015, section 3.2, with bands in place of one negative a pair.

    Args:
        margin: the wanted gap, in the units of ``form``.
        kind: "all": gap <= margin, every triplet that costs something; of these "hard": gap <= 0, and
            "semihard": 0 < gap; "easy" the others: gap > margin.
        form: D is the "distance", the "squared_distance", or "cosine", the negated cosine similarity.
        normalize: False takes distances of the rows as given (ignored by "cosine").

    Gaps within rounding of 0 are 0: an exact copy of the positive under another label is hard. There may be as
    many as N x M x M triplets, but only those kept take memory. Other arguments, and errors raised, as of
    :class:`deepmetric.losses.PairLoss`; an unknown word raises InputError too.
    """
    check_choice("mining.triplet_margin", "kind", kind, Kind)
    check_choice("mining.triplet_margin", "form", form, Form)
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    parts = []
    for block in blocks(batch, form, normalize=normalize):
        for row, positive in _positive_pairs(block):
            gap = block.distance[row] - block.distance[row, positive, None]
            further = block.further(row, block.order[row, positive])
            kept = gap <= margin
            if margin >= 0:  # rounding parts what is equally far
                kept |= ~further
            if kind == "easy":
                kept = ~kept
            elif kind != "all":
                kept &= further if kind == "semihard" else ~further
            pair, negative = (kept & block.negative[row]).nonzero(as_tuple=True)
            parts.append((block.anchors(row)[pair], positive[pair], negative))
    return Triplets(*joined(parts, 3, batch.anchors.device))


@torch.no_grad()
def angular(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    *,
    angle: float = 20.0,
    normalize: bool = True,
) -> Triplets:
    """Triplets whose angle at the negative is too wide: where arctan(|a - p| / (2 |n - (a + p) / 2|)) > angle.

    Wang et al., "Deep Metric Learning with Angular Loss", ICCV 2017, eq. 3 and 4: (a + p) / 2 is the centre of
    the circle through anchor and positive.

    Args:
        angle: degrees, above 0 and below 90.
        normalize: False takes the rows as given.

    A positive that is an exact copy of its anchor forms no triplet; a negative at the centre does. Other
    arguments, and errors raised, as of :class:`deepmetric.losses.PairLoss`; ``angle`` out of its range raises
    InputError too.
    """
    if not 0 < angle < 90:
        raise InputError(f"`angle` of mining.angular is in degrees, between 0 and 90; got {angle}.")
    batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    rows = Rows(batch, normalize=normalize)
    reach = 2 * math.tan(math.radians(angle))
    parts = []
    for block in blocks(batch, "squared_distance", normalize=normalize):
        for row, positive in _positive_pairs(block):
            anchor = block.anchors(row)
            a, p = rows.anchors(anchor), rows.refs(positive)
            apart = torch.linalg.vector_norm(a - p, dim=1, keepdim=True)
            from_centre = rows.squared((a + p) / 2)[0].sqrt()
            pair, negative = ((apart > reach * from_centre) & block.negative[row]).nonzero(as_tuple=True)
            parts.append((anchor[pair], positive[pair], negative))
    return Triplets(*joined(parts, 3, batch.anchors.device))


def _positive_pairs(block: Block) -> list[tuple[Tensor, Tensor]]:
    """Rows and references of the positive pairs, as many at a time as rows of a block."""
    row, positive = block.positive.nonzero(as_tuple=True)
    step = rows_at_once(block.positive.shape[1])
    return list(zip(row.split(step), positive.split(step)))

"""Which references carry the label of which anchor, without a matrix of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Up to this many pairs a boolean matrix of labels is cheaper than sorting them.
SMALL = 2**18


class Matches(NamedTuple):
    """Pairs of one label, own copies included.

    Listed as (anchor, ref) [E] each, sorted by reference; or, when ``anchor`` is None because they are too
    many, by class: ``anchor_class`` [N] and ``ref_class`` [M] number the classes of the anchors from 0, and a
    reference of another class has -1.
    """

    counts: Tensor  # [N] int64, how many references carry the anchor's label
    anchor: Tensor | None
    ref: Tensor | None
    anchor_class: Tensor | None = None
    ref_class: Tensor | None = None


def match(
    labels: Tensor, ref_labels: Tensor, listed: int, everywhere: Callable[[int], int] | None = None
) -> Matches:
    """Pairs of one label. More than ``listed`` of them are not listed; ``everywhere`` maps their number here to
    the one that decides (several processes must decide alike)."""
    few = len(labels) * len(ref_labels) <= min(SMALL, listed) and everywhere is None
    if few or not len(labels):
        ref, anchor = (ref_labels[:, None] == labels[None, :]).nonzero().unbind(1)
        return Matches(torch.bincount(anchor, minlength=len(labels)), anchor, ref)
    classes, anchor_class, sizes = labels.unique(return_inverse=True, return_counts=True)
    place = torch.searchsorted(classes, ref_labels).clamp_max_(len(classes) - 1)
    ref = (classes[place] == ref_labels).nonzero()[:, 0]
    of_class = place[ref]
    counts = torch.bincount(of_class, minlength=len(classes))
    pairs = int((counts * sizes).sum())
    if (everywhere(pairs) if everywhere is not None else pairs) > listed:
        ref_class = torch.full_like(place, -1)
        ref_class[ref] = of_class
        return Matches(counts[anchor_class], None, None, anchor_class, ref_class)
    # Every matched reference beside every anchor of its class.
    grouped = anchor_class.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    times = sizes[of_class]
    which = torch.arange(pairs, device=ref.device) - (times.cumsum(0) - times).repeat_interleave(times)
    anchor = grouped[first[of_class].repeat_interleave(times) + which]
    return Matches(counts[anchor_class], anchor, ref.repeat_interleave(times))

"""Histograms that can be differentiated: an item is shared between the two nodes beside it."""

from __future__ import annotations

from torch import Tensor


def soft_histogram(position: Tensor, counted: Tensor, nodes: int) -> Tensor:
    """Triangular histograms [b, nodes].

    Args:
        position: [b, M], in units of a bin: node k is at k. What lies beyond an end node (by rounding) is its.
        counted: [b, M] bool, which items count.
        nodes: at least 2.
    """
    position = position.clamp(0, nodes - 1)
    # Clamped again as integers: those of NaN are anywhere.
    lower = position.detach().floor().long().clamp_(0, nodes - 2)
    upper_share = (position - lower) * counted
    lower_share = counted.to(position.dtype) - upper_share
    histogram = position.new_zeros(len(position), nodes)
    return histogram.scatter_add(1, lower, lower_share).scatter_add(1, lower + 1, upper_share)

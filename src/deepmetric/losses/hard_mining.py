"""The pairs that are hard beside an anchor's other pairs, and the linear loss of them (Deep_Metric)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison


class HardMiningLoss(PairLoss):
    r"""The mean similarity of an anchor's hard negatives, less that of its hard positives.

    The code of Wang et al. (Deep_Metric, HardMining)::

        L = 1/N Σ_i ( mean_{kept P_i} (1 - S_ij) + mean_{kept N_i} S_ik )

    S is the cosine; kept are positives with S < max S of the negatives + epsilon and negatives with
    S > min S of the positives - epsilon.

    Args:
        epsilon: slack of the mining.

    GPW weight: 1/(N · kept positives) and 1/(N · kept negatives) of the anchor, 0 for other pairs.

    An anchor without positives, without negatives or without a kept pair costs 0 and counts in N. The value
    may be below 0: where the kept negatives point away.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> round(HardMiningLoss(0.3)(x, torch.tensor([0, 0, 1])).item(), 4)  # (0.2 + 0.6 + 0.2 + 0.96) / 3
    0.6533
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        if epsilon < 0:
            raise InputError(f"`epsilon` of HardMiningLoss must be at least 0; got {epsilon}.")
        self.epsilon = epsilon

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        least, most = hard_bounds(pairs, self.epsilon)
        below = mean_beyond(pairs.positives, lambda s: 1 - s, lambda s: -1.0, most, above=False)
        above = mean_beyond(pairs.negatives, lambda s: s, lambda s: 1.0, least, above=True)
        return (below + above).sum() / max(len(batch.anchors), 1)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}"


def hard_bounds(pairs: Comparison, epsilon: float) -> tuple[Tensor, Tensor]:
    """Similarities [N] above which a negative is hard, and below which a positive is, without gradient. Where an
    anchor lacks positives or negatives no pair is hard."""
    least, most = pairs.positives.min() - epsilon, pairs.negatives.max() + epsilon
    # Infinite without a pair; beyond all cosines is enough, and arithmetic stays finite.
    return least.clamp(-1e3, 1e3), most.clamp(-1e3, 1e3)


def mean_beyond(
    side: Any,
    cost: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor | float],
    bound: Tensor,
    *,
    above: bool,
) -> Tensor:
    """The mean cost [N] of an anchor's pairs above (or below) its bound [N]; 0 where there is none.

    ``side`` are the positives or the negatives of a Comparison, ``slope`` the derivative of ``cost``.
    """
    sign = 1.0 if above else -1.0

    def inside(s: Tensor, t: Tensor) -> Tensor:
        return torch.sign((sign * (s - t)).relu())

    total = side.sum(lambda s, t: cost(s) * inside(s, t), bound, slope=lambda s, t: slope(s) * inside(s, t))
    with torch.no_grad():
        _, count = side.hinge_sum(bound, above=above)
    return total / count.clamp_min(1)

"""The pairs that are hard beside an anchor's other pairs, and the linear loss of them (Deep_Metric)."""

from __future__ import annotations

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

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> round(HardMiningLoss(0.3)(x, torch.tensor([0, 0, 1])).item(), 4)  # (0.2 + 0.6 + 0.2 + 0.96) / 3
    0.6533
    """

    over_parts = True

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        if epsilon < 0:
            raise InputError(f"`epsilon` of HardMiningLoss must be at least 0; got {epsilon}.")
        self.epsilon = epsilon

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        least = hardest_bound(pairs.positives.min() - self.epsilon)
        above, kept, most = pairs.negatives.hinge_sum_and_hardest(least, above=True)
        most = hardest_bound(most + self.epsilon)
        below, positives = pairs.positives.hinge_sum(most, above=False)
        # The hinge takes the bound off each pair: put back.
        above = (above + kept * least) / kept.clamp_min(1)
        below = (below + positives * (1 - most)) / positives.clamp_min(1)
        return (below + above).sum() / max(len(batch.anchors), 1)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}"


def hardest_bound(similarity: Tensor) -> Tensor:
    """A bound of the mining [N] kept finite: it is infinite where an anchor has no pair to take it from. Beyond all
    cosines is enough, and arithmetic stays finite."""
    return similarity.clamp(-1e3, 1e3)

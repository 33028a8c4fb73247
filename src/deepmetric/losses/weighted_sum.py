"""Several losses as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError


class WeightedSum(nn.Module):
    """Losses of the same arguments, each times its weight, added: a loss and a regulariser, or two losses.

    What works for all of them works here: references, a memory, several processes, class weights.

    Args:
        losses: one or more modules; each is called with all that this one is called with.
        weights: one for each; None: 1 each.

    >>> from deepmetric.losses import IntraClassVarianceLoss, MultiSimilarityLoss
    >>> loss = WeightedSum([MultiSimilarityLoss(), IntraClassVarianceLoss()], [1.0, 0.1])
    >>> loss(torch.eye(2), torch.tensor([0, 1])).ndim
    0

    In a recipe::

        loss:
          class_path: deepmetric.losses.WeightedSum
          init_args:
            losses:
            - class_path: deepmetric.losses.MultiSimilarityLoss
            - class_path: deepmetric.losses.IntraClassVarianceLoss
            weights: [1.0, 0.1]
    """

    def __init__(self, losses: list[nn.Module], weights: list[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else list(weights)
        if not losses or len(weights) != len(losses):
            raise InputError(
                f"WeightedSum needs one or more `losses` and as many `weights`; got {len(losses)} and {len(weights)}."
            )
        self.losses = nn.ModuleList(losses)
        self.weights = weights

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The weighted sum of the losses of these arguments, a scalar."""
        values = [weight * loss(*args, **kwargs) for weight, loss in zip(self.weights, self.losses)]
        return torch.stack(values).sum()

    def extra_repr(self) -> str:
        return f"weights={self.weights}"

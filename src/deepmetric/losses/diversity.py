"""What makes groups of an embedding differ from each other (Opitz et al., BIER 2017 and A-BIER 2018).

Both are called ``diversity(features, weight)`` with the features [B, h] that enter the embedding layer and that layer's
weight [D, h], and return a scalar. They look at the layer's outputs without its bias, and the features are constants to
them: what they change is the layer, never the network below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from deepmetric.errors import InputError, check_widths


class ActivationDiversity(nn.Module):
    r"""Two groups shall not answer to the same item.

    Opitz et al., "BIER", ICCV 2017, section 3.4 (as in the authors' code): with f_i the outputs of group i::

        Σ_{i<j} mean over items, k and l of (f_i[k] f_j[l])²  +  norm_weight · Σ_i mean over units of (‖w‖² - 1)²

    where w are the incoming weights of a unit of group i; without the second term w = 0 would be the best.

    Args:
        groups: widths of the groups, in the order of the units.
        norm_weight: of the penalty on the units' norms.
    """

    def __init__(self, groups: Sequence[int] = (96, 160, 256), norm_weight: float = 100.0) -> None:
        super().__init__()
        self.groups = check_widths(type(self).__name__, "groups", groups)
        self.norm_weight = norm_weight

    def forward(self, features: Tensor, weight: Tensor) -> Tensor:
        """The penalty, a scalar of ``weight``'s dtype, float32 at least.

        Raises:
            InputError: ``weight`` has other than sum(groups) rows, or is for features of another width.
        """
        weight = _at_least_float32(weight)
        parts = group_outputs(features, weight, self.groups)
        # The mean over k and l of a product of squares is the product of the two means.
        energy = [part.square().mean(1) for part in parts]
        overlap = sum((_mean(a * b) for a, b in combinations(energy, 2)), weight.new_zeros(()))
        return overlap + self.norm_weight * self.norms(weight)

    def norms(self, weight: Tensor) -> Tensor:
        """The penalty on the layer's norms before its weight: the sum over groups of the mean over units."""
        groups = weight.split(self.groups)
        return sum((unit_norm_penalty(group) for group in groups), weight.new_zeros(()))


class AdversarialDiversity(ActivationDiversity):
    r"""No group shall be predictable from another.

    Opitz et al., "Deep Metric Learning with BIER" (A-BIER), arXiv:1801.04815, section 3.5. For groups i < j a regressor
    h (two layers, ReLU between) maps f_j to the width of f_i, and

        similarity_ij = mean over items and units of (f_i ⊙ h(f_j))²

    The regressors are trained to raise it and the embedding layer to lower it, in the one step: the value is
    -Σ similarity_ij, and the gradient is reversed where it enters f_i and f_j. Norms are held by

        norm_weight · (Σ over weight matrices of mean over units of (‖w‖² - 1)²
                       + Σ over regressors' biases of [‖b‖² - 1]₊)

    of the regressors and of the embedding layer, because otherwise the similarity has no bound. A unit's norm is that
    of its incoming weights; the authors' code takes the outgoing weights of each input instead (which of the two the
    paper means is not verified).

    Args:
        groups: widths of the groups, in the order of the units.
        hidden: width of the regressors' hidden layer.
        norm_weight: of the norm penalties.
    """

    def __init__(
        self, groups: Sequence[int] = (96, 160, 256), hidden: int = 512, norm_weight: float = 1e5
    ) -> None:
        super().__init__(groups, norm_weight)
        if hidden < 1:
            raise InputError(f"`hidden` of AdversarialDiversity is {hidden}; expected at least 1.")
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Linear(source, hidden), nn.ReLU(), nn.Linear(hidden, target))
            for target, source in combinations(self.groups, 2)
        )

    def forward(self, features: Tensor, weight: Tensor) -> Tensor:
        weight = _at_least_float32(weight)
        parts = [reverse_gradient(part) for part in group_outputs(features, weight, self.groups)]
        value = self.norm_weight * self.norms(weight)
        for (target, source), regressor in zip(combinations(parts, 2), self.regressors):
            value = value - _mean((target * regressor(source)).square())
        return value

    def norms(self, weight: Tensor) -> Tensor:
        penalty = super().norms(weight)
        for layer in self.regressors.modules():
            if isinstance(layer, nn.Linear):
                penalty = penalty + unit_norm_penalty(layer.weight) + (layer.bias.square().sum() - 1).relu()
        return penalty


def group_outputs(features: Tensor, weight: Tensor, groups: Sequence[int]) -> tuple[Tensor, ...]:
    """The layer's outputs without bias for constant features, one [B, width] for each group.

    Raises:
        InputError: features and weight of different widths, or a weight that is not for these groups.
    """
    if weight.ndim != 2 or features.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise InputError(
            f"features {tuple(features.shape)} and weight {tuple(weight.shape)} do not fit: expected [B, h] and [D, h]."
        )
    if len(weight) != sum(groups):
        raise InputError(
            f"the embedding layer has {len(weight)} units, the groups {', '.join(map(str, groups))} together "
            f"{sum(groups)}. Give the loss the model's groups."
        )
    return linear(features.detach().to(weight.dtype), weight).split(list(groups), 1)


def _mean(values: Tensor) -> Tensor:
    """0 of none: a batch may be empty."""
    return values.sum() / max(values.numel(), 1)


def unit_norm_penalty(weight: Tensor) -> Tensor:
    """Mean over rows of (‖w‖² - 1)²."""
    return (weight.square().sum(1) - 1).square().mean()


def _at_least_float32(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """``x`` itself, whose gradient arrives with the opposite sign (Ganin & Lempitsky, ICML 2015)."""
    return _Reversed.apply(x)  # type: ignore[no-any-return]

"""Parameter groups with their own learning rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from deepmetric.models import EmbeddingModel
from deepmetric.training.recipe import LearningRates


def parameter_groups(model: EmbeddingModel, loss: nn.Module, rates: LearningRates) -> list[dict[str, Any]]:
    """Groups named backbone, head and loss, of the parameters that take gradients; empty groups are left out.

    A group without a rate of its own has no ``lr`` key, so the optimiser's own applies.
    """
    backbone = list(_trainable(model.backbone.parameters()))
    known = {id(parameter) for parameter in backbone}
    head = [parameter for parameter in _trainable(model.parameters()) if id(parameter) not in known]
    groups = []
    for name, parameters, rate in (
        ("backbone", backbone, rates.backbone),
        ("head", head, rates.head),
        ("loss", list(_trainable(loss.parameters())), rates.loss),
    ):
        if parameters:
            groups.append({"name": name, "params": parameters, **({} if rate is None else {"lr": rate})})
    return groups


def _trainable(parameters: Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
    return (parameter for parameter in parameters if parameter.requires_grad)

"""What a loss that holds something for each class must know of the data: how many there are, numbered from 0."""

from __future__ import annotations

from torch import Tensor, nn

from deepmetric.errors import InputError


def set_classes(loss: nn.Module, num_classes: int, dim: int) -> None:
    """Tell ``loss``, and every loss in it, how many training classes there are and how wide embeddings are.

    Whatever has a method ``set_classes(num_classes, dim)`` is told; call this before the optimiser is made.
    """
    for part in loss.modules():
        told = getattr(part, "set_classes", None)
        if told is not None:
            told(num_classes, dim)


def check_class_labels(owner: str, labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless ``labels`` lie in 0 ... num_classes - 1."""
    # On a GPU reading the labels would make the step wait; there indexing fails by itself.
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"`labels` run from {low} to {high}, but this {owner} has {num_classes} classes, the labels 0 to "
                f"{num_classes - 1}. Number the training classes from 0, and set `num_classes` to how many there are."
            )

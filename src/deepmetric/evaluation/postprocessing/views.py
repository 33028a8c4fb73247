"""Test-time augmentation: the mean embedding of several views of an image."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.models import EmbeddingModel


class Views(nn.Module):
    """A model whose embedding is the mean over views of the image, as unit rows.

    It stands wherever :func:`~deepmetric.evaluation.evaluate_model` takes a model; each view costs a forward pass.

    Args:
        model: the trained model.
        flip: also each view mirrored left to right.
        crops: 1 (the centre), or 5: the corners and the centre, as crops of the model's size out of the square of
            side ``preprocessing.resize`` (ten with ``flip``, as in Krizhevsky, Sutskever, Hinton, NIPS 2012).

    Raises:
        InputError: five crops of a model whose ``resize`` is its ``size``: they would all be the same.
    """

    def __init__(self, model: EmbeddingModel, *, flip: bool = True, crops: int = 1) -> None:
        super().__init__()
        if crops not in (1, 5):
            raise InputError(f"`crops` of Views is {crops}; expected 1 or 5.")
        self.model, self.flip, self.crops = model, flip, crops
        preprocessing = model.preprocessing
        if crops == 5 and preprocessing.resize == preprocessing.size:
            raise InputError(
                f"five crops of {preprocessing.size} pixels need an image resized to more than that, and this model "
                f"resizes to {preprocessing.resize}. Take `flip` alone, or a larger `model.resize`."
            )
        self.size = preprocessing.size
        self.preprocessing = (
            replace(preprocessing, size=preprocessing.resize) if crops == 5 else preprocessing
        )

    def forward(self, images: Tensor) -> Tensor:
        """Unit rows [B, d] of images uint8 [B, 3, S, S], S the side that ``preprocessing`` gives."""
        from torchvision.transforms.v2 import functional as F

        views = F.five_crop(images, [self.size, self.size]) if self.crops == 5 else (images,)
        if self.flip:
            views = (*views, *(F.horizontal_flip(view) for view in views))
        total = torch.stack([self.model(view) for view in views]).sum(0)
        return nn.functional.normalize(total, dim=1)

"""What BIER and A-BIER need beside a loss: their regulariser sees the embedding layer, and may prepare it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.losses import ActivationDiversity, BIERLoss
from deepmetric.training.procedure import Procedure

if TYPE_CHECKING:
    from deepmetric.training.trainer import Trainer


class BIER(Procedure):
    """Shows the embedding layer to :class:`deepmetric.losses.BIERLoss`, and initialises it before the first step.

    With ``initial_steps``, the auxiliary initialisation of BIER (Opitz et al., ICCV 2017): before training the layer's
    weights alone minimise :class:`deepmetric.losses.ActivationDiversity` on the features of the network as it is, so
    that the groups begin with different directions. That this is how the paper solves it, and its number of steps and
    learning rate, are not verified: the authors' released code has no such phase.

    Args:
        initial_steps: steps of Adam before training; 0: none.
        initial_lr: their learning rate.
        initial_items: items of the training set whose features are looked at, drawn at random; all of them at most.
        norm_weight: of the units' norms in the initialisation.
        seed: of the drawing.
    """

    def __init__(
        self,
        initial_steps: int = 0,
        initial_lr: float = 0.01,
        initial_items: int = 2048,
        norm_weight: float = 100.0,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("initial_steps", initial_steps, 0), ("initial_items", initial_items, 1)):
            if value < least:
                raise InputError(f"`{name}` of BIER is {value}; expected at least {least}.")
        self.initial_steps = initial_steps
        self.initial_lr = initial_lr
        self.initial_items = initial_items
        self.norm_weight = norm_weight
        self.seed = seed

    def setup(self, trainer: Trainer) -> None:
        """As of Procedure.

        Raises:
            InputError: the loss is no BIERLoss, or the model has no linear layer at its end.
        """
        loss = next((module for module in trainer.loss.modules() if isinstance(module, BIERLoss)), None)
        layer = getattr(trainer.model.head, "linear", None)
        if loss is None or not isinstance(layer, nn.Linear):
            raise InputError(
                "the procedure BIER needs deepmetric.losses.BIERLoss as the loss and a model that ends in a linear "
                f"layer, such as deepmetric.models.BIERModel; got {type(trainer.loss).__name__} and "
                f"{type(trainer.model).__name__}. Name the system after the data."
            )
        loss.attach(layer)
        self.trainer, self.groups, self.layer = trainer, loss.groups, layer

    def begin(self) -> None:
        if not self.initial_steps:
            return
        features = self._features()
        diversity = ActivationDiversity(self.groups, self.norm_weight)
        weight = self.layer.weight
        optimizer = torch.optim.Adam([weight], lr=self.initial_lr)
        for _ in range(self.initial_steps):
            (weight.grad,) = torch.autograd.grad(diversity(features, weight), weight)
            optimizer.step()
        weight.grad = None

    def _features(self) -> Tensor:
        """What enters the embedding layer, float32 [items, h], of items drawn from the training set."""
        data, found = self.trainer.train_data, []
        order = np.random.default_rng(self.seed).permutation(len(data))[: self.initial_items]
        handle = self.layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float()))
        try:
            self.trainer.model.embed(data.subset(np.sort(order)))
        finally:
            handle.remove()
        return torch.cat(found)

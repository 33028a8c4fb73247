"""Softmax cross-entropy over classes: what a margin does to the own class's logit is all that its members differ in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError
from deepmetric.losses.proxies.base import ClassBatch, ClassLoss


class SoftmaxLoss(ClassLoss):
    r"""L = mean of -log( exp(f(z_y)) / (exp(f(z_y)) + Σ_{c≠y} exp(z_c)) ), z_c = scale · cos(x, w_c).

    A subclass gives ``scale`` and :meth:`with_margin`, the f. GPW weight of the cosine to another class c:
    scale · p_c / N with p the softmax; to the own one scale · (1 - p_y) f'(z_y) / N.

    Args:
        label_smoothing: ε of targets (1 - ε) for the own class and ε/C for every class, as in
            ``torch.nn.functional.cross_entropy``.

    The others are those of :class:`~deepmetric.losses.proxies.base.ClassLoss`.
    """

    def __init__(
        self,
        num_classes: int | None,
        dim: int | None,
        scale: float,
        *,
        label_smoothing: float = 0.0,
        centers: int = 1,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_classes, dim, centers=centers, negative_fraction=negative_fraction, sharded=sharded, seed=seed
        )
        if scale <= 0:
            raise InputError(f"the scale of {self._name}'s logits must be above 0; got {scale}.")
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"`label_smoothing` of {self._name} must be at least 0 and below 1; got {label_smoothing}."
            )
        self.scale = scale
        self.label_smoothing = label_smoothing

    def with_margin(self, own: Tensor, batch: ClassBatch) -> Tensor:
        """f(z_y) [N] of the own classes' logits [N]."""
        return own

    def reset_parameters(self) -> None:
        # As in the code of ArcFace; the norm falls out of the logits, and sets how fast a step turns a proxy.
        torch.nn.init.normal_(self.proxies, std=0.01)

    def of_batch(self, batch: ClassBatch) -> Tensor:
        return self.cross_entropy(batch)

    def cross_entropy(self, batch: ClassBatch, **how) -> Tensor:
        """The loss; keyword arguments are those of :meth:`logits`."""
        smoothing = self.label_smoothing
        logits, classes = self.logits(batch, self.scale, wants_total=smoothing > 0, **how)
        own = self.with_margin(logits.own, batch)
        cost = softplus(logits.others - own, threshold=40.0)
        if smoothing:
            cost = cost + smoothing * (own - (own + logits.total) / classes)
        return self.mean(cost)

"""SphereFace (Liu et al. 2017) and its forerunner, the large-margin softmax (Liu et al. 2016)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.proxies.base import ClassBatch
from deepmetric.losses.proxies.softmax import SoftmaxLoss


class SphereFaceLoss(SoftmaxLoss):
    r"""Softmax cross-entropy in which the angle to the own class counts several times over.

    Liu, Wen, Yu, Li, Raj, Song, "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017, eq. 7
    (A-Softmax). Class weights are L2-normalised, rows keep their norm, θ_c is the angle between an item and the
    weights of class c::

        ψ(θ) = (-1)^k cos(m θ) - 2k   for θ in [kπ/m, (k + 1)π/m]
        z_c = scale ‖x‖ cos θ_c;   z_y = scale ‖x‖ ψ(θ_y)
        L = mean of  -log( exp(z_y) / Σ_c exp(z_c) )

    Args:
        num_classes, dim, negative_fraction, sharded, seed: see :class:`~deepmetric.losses.proxies.base.ClassLoss`.
        margin: m, a whole number of at least 1.
        scale: factor of all logits. 1 counts on norms that the network learns: its embedding must not be normalised.
        annealing: begin with the plain softmax, as the authors do because ψ alone hardly starts to learn: ψ(θ) becomes
            (λ cos θ + ψ(θ)) / (1 + λ), with λ = max(5, 1000 / (1 + 0.12 t)) at training step t, which ``state_dict``
            holds (``steps``). (Values commonly given for the authors' training file, which was not at hand to check.)
        label_smoothing: see :class:`~deepmetric.losses.proxies.softmax.SoftmaxLoss`.

    Weights begin with Glorot's uniform distribution. With one class the loss is 0. Range [0, ∞).

    GPW weight of the cosine to another class c: scale ‖x‖ p_c; to the own one scale ‖x‖ (1 - p_y) m |sin mθ| / sin θ;
    each /N.

    >>> loss = SphereFaceLoss(num_classes=2, dim=2, margin=2)
    >>> loss.proxies.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> x = torch.tensor([[3.0, 4.0]])  # cos θ_y = 0.6, θ_y = 53°: 5 cos 106° = -1.4 against 4
    >>> round(loss(x, torch.tensor([0])).item(), 4)  # log(1 + e^5.4)
    5.4045
    """

    steps: Tensor
    normalize = False  # rows
    normalize_proxies = True

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        margin: int = 4,
        scale: float = 1.0,
        annealing: bool = False,
        label_smoothing: float = 0.0,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            scale,
            label_smoothing=label_smoothing,
            negative_fraction=negative_fraction,
            sharded=sharded,
            seed=seed,
        )
        if margin < 1 or margin != int(margin):
            raise InputError(
                f"`margin` of {self._name} multiplies the angle: a whole number from 1 on; got {margin}."
            )
        self.margin = int(margin)
        self.annealing = annealing
        self.register_buffer("steps", torch.tensor(0))

    def reset_parameters(self) -> None:
        torch.nn.init.xavier_uniform_(self.proxies)

    def of_batch(self, batch: ClassBatch) -> Tensor:
        value = self.cross_entropy(batch, normalize=self.normalize, normalize_proxies=self.normalize_proxies)
        if self.training:
            self.steps += 1
        return value

    def with_margin(self, own: Tensor, batch: ClassBatch) -> Tensor:
        norm = self.scale * self._norms(batch)
        cosine = own / torch.where(norm > 0, norm, 1)
        # cos(mθ) as a polynomial of cos θ, which has derivatives everywhere.
        multiple, before = cosine, torch.ones_like(cosine)
        for _ in range(self.margin - 1):
            multiple, before = 2 * cosine * multiple - before, multiple
        with torch.no_grad():
            angle = torch.acos(cosine.clamp(-1, 1))
            k = (self.margin * angle / math.pi).floor().clamp(max=self.margin - 1)
            sign = 1 - 2 * (k % 2)
        psi = sign * multiple - 2 * k
        if self.annealing:
            plain = max(5.0, 1000 / (1 + 0.12 * int(self.steps)))
            psi = (plain * cosine + psi) / (1 + plain)
        return norm * psi

    def _norms(self, batch: ClassBatch) -> Tensor:
        """What divides an own logit / scale to give a cosine [N]."""
        return torch.linalg.vector_norm(batch.embeddings, dim=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin}, scale={self.scale}, annealing={self.annealing}"


class LargeMarginSoftmaxLoss(SphereFaceLoss):
    r"""As :class:`SphereFaceLoss`, but class weights keep their norms too.

    Liu, Wen, Yu, Yang, "Large-Margin Softmax Loss for Convolutional Neural Networks", ICML 2016, eq. 4-6::

        z_c = scale ‖x‖ ‖w_c‖ cos θ_c;   z_y = scale ‖x‖ ‖w_y‖ ψ(θ_y)
    """

    normalize_proxies = False

    def _norms(self, batch: ClassBatch) -> Tensor:
        labels = batch.labels if self.share is None else self.share.local(batch.labels)
        own = torch.nn.functional.embedding(labels.clamp_min(0), self.used_proxies())
        norms = torch.where(labels >= 0, torch.linalg.vector_norm(own.to(batch.embeddings.dtype), dim=1), 0)
        if self.share is not None and self.processes is not None:
            norms = self.processes.sum(norms)
        return super()._norms(batch) * norms

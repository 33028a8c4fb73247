"""Normalised softmax (Wang et al. 2017; Zhai and Wu 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.proxies.base import ClassBatch
from deepmetric.losses.proxies.softmax import SoftmaxLoss


class NormalizedSoftmaxLoss(SoftmaxLoss):
    r"""Cross-entropy of a classifier whose rows and class weights are L2-normalised, without a bias.

    Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019, eq. 2 (NormFace in Wang et
    al., ACM MM 2017)::

        L = mean of  -log( exp(cos(x, w_y) / τ) / Σ_c exp(cos(x, w_c) / τ) )

    Args:
        num_classes, dim, negative_fraction, sharded, seed: see :class:`~deepmetric.losses.proxies.base.ClassLoss`.
        temperature: τ, above 0.
        label_smoothing: see :class:`~deepmetric.losses.proxies.softmax.SoftmaxLoss`.
        normalize: L2-normalise the embeddings; False takes them with their norms (class weights are normalised
            either way).

    Weights begin uniform in ±1/√dim, as in the authors' code. With one class the loss is 0. Range [0, ∞).

    GPW weight of the cosine to another class c: p_c / τ; to the own one (1 - p_y) / τ; each /N.

    >>> loss = NormalizedSoftmaxLoss(num_classes=2, dim=2, temperature=0.5)
    >>> loss.proxies.data = torch.tensor([[1.0, 0], [0, 1]])
    >>> round(loss(torch.tensor([[0.6, 0.8]]), torch.tensor([0])).item(), 4)  # log(1 + e^0.4)
    0.913
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        temperature: float = 0.05,
        label_smoothing: float = 0.0,
        normalize: bool = True,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        if temperature <= 0:
            raise InputError(f"`temperature` of NormalizedSoftmaxLoss must be above 0; got {temperature}.")
        super().__init__(
            num_classes,
            dim,
            1 / temperature,
            label_smoothing=label_smoothing,
            negative_fraction=negative_fraction,
            sharded=sharded,
            seed=seed,
        )
        self.temperature = temperature
        self.normalize = normalize

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.proxies.shape[1])
        torch.nn.init.uniform_(self.proxies, -bound, bound)

    def of_batch(self, batch: ClassBatch) -> Tensor:
        return self.cross_entropy(batch, normalize=self.normalize)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, normalize={self.normalize}"

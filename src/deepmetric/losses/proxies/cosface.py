"""CosFace, the large margin cosine loss (Wang et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from deepmetric.losses.proxies.base import ClassBatch
from deepmetric.losses.proxies.softmax import SoftmaxLoss


class CosFaceLoss(SoftmaxLoss):
    r"""Softmax cross-entropy of cosines, the own class's made smaller by a margin.

    Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, eq. 4; also AM-Softmax
    (Wang et al., 2018). Rows and class weights are L2-normalised::

        L = mean of  -log( exp(s (cos_y - m)) / (exp(s (cos_y - m)) + Σ_{c≠y} exp(s cos_c)) )

    Args:
        num_classes, dim, negative_fraction, sharded, seed: see :class:`~deepmetric.losses.proxies.base.ClassLoss`.
        margin: m, on the cosine.
        scale: s.
        label_smoothing: see :class:`~deepmetric.losses.proxies.softmax.SoftmaxLoss`.

    Weights begin normal with standard deviation 0.01. With one class the loss is 0. Range [0, ∞).

    GPW weight of the cosine to another class c: s p_c; to the own one s (1 - p_y); each /N.

    >>> import torch
    >>> loss = CosFaceLoss(num_classes=2, dim=2, margin=0.2, scale=2.0)
    >>> loss.proxies.data = torch.tensor([[1.0, 0], [0, 1]])
    >>> round(loss(torch.tensor([[0.8, 0.6]]), torch.tensor([0])).item(), 4)  # log(1 + e^0)
    0.6931
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        margin: float = 0.35,
        scale: float = 64.0,
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
        self.margin = margin

    def with_margin(self, own: Tensor, batch: ClassBatch) -> Tensor:
        return own - self.scale * self.margin

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin}, scale={self.scale}"

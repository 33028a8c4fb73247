"""ArcFace (Deng et al. 2019), also with several sub-centres a class (Deng et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.proxies.base import ClassBatch
from deepmetric.losses.proxies.pools import Nearest
from deepmetric.losses.proxies.softmax import SoftmaxLoss


class ArcFaceLoss(SoftmaxLoss):
    r"""Softmax cross-entropy of cosines, the angle to the own class made larger by a margin.

    Deng, Guo, Xue, Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, eq. 3.
    Rows and class weights are L2-normalised, θ_c is the angle between an item and the weights of class c::

        z_c = s cos θ_c;   z_y = s cos(θ_y + m)                     while θ_y + m is at most π,
                           z_y = s (cos θ_y - m sin m)              beyond, so that it goes on falling
        L = mean of  -log( exp(z_y) / Σ_c exp(z_c) )

    Args:
        num_classes, dim, negative_fraction, sharded, seed: see :class:`~deepmetric.losses.proxies.base.ClassLoss`.
        margin: m in radians, in [0, π). (28.6 degrees are 0.499.)
        scale: s.
        label_smoothing: see :class:`~deepmetric.losses.proxies.softmax.SoftmaxLoss`.

    Weights begin normal with standard deviation 0.01, as in the authors' code. Where an item is exactly aligned with
    its weights the angle has no derivative; it is taken as 0. With one class the loss is 0. Range [0, ∞).

    GPW weight of the cosine to another class c: s p_c; to the own one s (1 - p_y) sin(θ + m) / sin θ; each /N.

    >>> loss = ArcFaceLoss(num_classes=2, dim=2, margin=math.pi / 6, scale=2.0)
    >>> loss.proxies.data = torch.tensor([[1.0, 0], [0, 1]])
    >>> x = torch.tensor([[1.0, 1.0]])  # θ = 45° to both: 2 cos 75° = 0.5176 against 2 cos 45° = 1.4142
    >>> round(loss(x, torch.tensor([0])).item(), 4)  # log(1 + e^0.8966)
    1.2387
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        margin: float = 0.5,
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
        self.margin = _radians(self._name, margin)

    def with_margin(self, own: Tensor, batch: ClassBatch) -> Tensor:
        cosine = own / self.scale
        squared = 1 - cosine.square()
        # Below the rounding of a cosine the angle is 0 (or π), and its derivative is taken as 0.
        apart = squared > 8 * torch.finfo(own.dtype).eps
        sine = torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        turned = torch.where(apart | (cosine < 0), turned, turned.detach())
        beyond = cosine < -math.cos(self.margin)
        return self.scale * torch.where(beyond, cosine - self.margin * math.sin(self.margin), turned)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin}, scale={self.scale}"


class SubCenterArcFaceLoss(ArcFaceLoss):
    r"""ArcFace with several sub-centres a class, of which an item's nearest counts.

    Deng, Guo, Liu, Gong, Zafeiriou, "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces",
    ECCV 2020, eq. 3: as :class:`ArcFaceLoss` with cos θ_c = max_k cos(x, w_ck). Odd and mislabelled items of a class
    gather at sub-centres of their own.

    Args:
        sub_centers: K.

    All else as in :class:`ArcFaceLoss`; of several nearest sub-centres the first gets the gradient.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        margin: float = 0.5,
        scale: float = 64.0,
        sub_centers: int = 3,
        label_smoothing: float = 0.0,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        SoftmaxLoss.__init__(
            self,
            num_classes,
            dim,
            scale,
            label_smoothing=label_smoothing,
            centers=sub_centers,
            negative_fraction=negative_fraction,
            sharded=sharded,
            seed=seed,
        )
        self.margin = _radians(self._name, margin)

    def of_batch(self, batch: ClassBatch) -> Tensor:
        return self.cross_entropy(batch, pool=Nearest())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sub_centers={self.centers}"


def _radians(owner: str, margin: float) -> float:
    if not 0 <= margin < math.pi:
        raise InputError(
            f"`margin` of {owner} is an angle in radians, at least 0 and below π; got {margin}. If these are degrees, "
            f"give {math.radians(margin):.4g}."
        )
    return margin

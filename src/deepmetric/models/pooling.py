"""Feature map [B, C, h, w] -> one vector for each image [B, C]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError, did_you_mean


class AvgPool(nn.Module):
    """Mean over the positions."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


class MaxPool(nn.Module):
    """Maximum over the positions."""

    def forward(self, features: Tensor) -> Tensor:
        return features.amax(dim=(2, 3))


class AvgMaxPool(nn.Module):
    """Mean plus maximum, unscaled, as in Proxy-Anchor (Kim et al., CVPR 2020)."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3)) + features.amax(dim=(2, 3))


class GeM(nn.Module):
    r"""Generalised mean (Radenovic et al. 2019, eq. 3): :math:`(\mathrm{mean}_{hw}\, \max(x, \epsilon)^p)^{1/p}`.

    One learnable p is shared by all channels. p = 1 is the mean of the clamped map, p -> inf its maximum. Computed in
    float32 also under autocast: x**3 leaves the range of half precision at x = 40. Positions at or below ``eps``
    take no gradient.

    Args:
        p: the exponent to start from.
        eps: smallest value that is raised to the power.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            # float64 stays as it is, so that gradients can be checked numerically.
            x = features if features.dtype == torch.float64 else features.float()
            p = self.p.to(x.dtype)
            pooled = x.clamp(min=self.eps).pow(p).mean(dim=(2, 3)).pow(1 / p)
        return pooled.to(features.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p.item():g}, eps={self.eps:g}"


POOLINGS: dict[str, type[nn.Module]] = {"avg": AvgPool, "max": MaxPool, "avg+max": AvgMaxPool, "gem": GeM}


def make_pooling(name: str) -> nn.Module:
    """The pooling called ``name``: avg, max, avg+max or gem."""
    if name not in POOLINGS:
        raise InputError(
            f"unknown pooling {name!r}: expected {', '.join(POOLINGS)}.{did_you_mean(str(name), POOLINGS)}"
        )
    return POOLINGS[name]()

"""Pooled features -> embedding."""

from __future__ import annotations

from torch import Tensor, nn

from deepmetric.errors import InputError


class Head(nn.Module):
    """[Linear, ReLU], [LayerNorm], Linear: features [B, width] -> [B, embedding_dim], not normalised.

    The last layer starts from He's normal distribution (fan-out) with zero bias, as in the code of the
    multi-similarity and Proxy-Anchor authors. The LayerNorm has no parameters of its own, as in Zhai & Wu (BMVC 2019)
    and ProxyNCA++ (Teh et al., ECCV 2020).

    Args:
        width: width of the pooled features.
        embedding_dim: width of the embedding.
        hidden_dim: width of a hidden layer in front; None leaves it out.
        layer_norm: normalise each vector before the last layer.

    Raises:
        InputError: a width below 1.
    """

    def __init__(
        self, width: int, embedding_dim: int, hidden_dim: int | None = None, layer_norm: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("embedding_dim", embedding_dim), ("hidden_dim", hidden_dim)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1, or null to leave the layer out")
        self.hidden = (
            nn.Identity() if hidden_dim is None else nn.Sequential(nn.Linear(width, hidden_dim), nn.ReLU())
        )
        width = width if hidden_dim is None else hidden_dim
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if layer_norm else nn.Identity()
        self.linear = nn.Linear(width, embedding_dim)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(self.hidden(features)))

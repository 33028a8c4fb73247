"""Several centres a class: how an item's similarities to them become its similarity to the class."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Pool(Protocol):
    """From similarities [N, m, K] to [N, m], and the way back of gradients."""

    def __call__(self, similarity: Tensor) -> Tensor: ...

    def backward(self, grad: Tensor, similarity: Tensor) -> Tensor:
        """Gradient [N, m, K] for the similarities, of that [N, m] for what they became."""
        ...


class Nearest(NamedTuple):
    """The largest similarity counts, as in sub-centre ArcFace (Deng et al., ECCV 2020)."""

    def __call__(self, similarity: Tensor) -> Tensor:
        return similarity.amax(2)

    def backward(self, grad: Tensor, similarity: Tensor) -> Tensor:
        return torch.zeros_like(similarity).scatter_(2, similarity.argmax(2, keepdim=True), grad[:, :, None])


class Softmax(NamedTuple):
    """Σ_k q_k s_k with q = softmax(s / gamma), as in SoftTriple (Qian et al., ICCV 2019, eq. 5-6)."""

    gamma: float

    # Centres come first: torch's softmax over a last dimension of three numbers takes seven times as long.

    def __call__(self, similarity: Tensor) -> Tensor:
        centers = similarity.permute(2, 0, 1).contiguous()
        return (centers / self.gamma).softmax(0).mul_(centers).sum(0)

    def backward(self, grad: Tensor, similarity: Tensor) -> Tensor:
        centers = similarity.permute(2, 0, 1).contiguous()
        share = (centers / self.gamma).softmax(0)
        slope = (centers - (share * centers).sum(0)).div_(self.gamma).add_(1).mul_(share)
        return slope.mul_(grad).permute(1, 2, 0).contiguous()

"""SoftTriple (Qian et al. 2019): a softmax over classes of several centres each."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepmetric.errors import InputError
from deepmetric.losses.proxies.base import ClassBatch
from deepmetric.losses.proxies.pools import Softmax
from deepmetric.losses.proxies.softmax import SoftmaxLoss
from deepmetric.losses.streamed.rows import unit_rows

# Numbers of a block of classes whose centres are compared with each other at a time.
BLOCK = 2**20


class SoftTripleLoss(SoftmaxLoss):
    r"""Softmax cross-entropy over classes of several centres, and a penalty that draws superfluous centres together.

    Qian, Shang, Sun, Hu, Li, Jin, "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling", ICCV 2019, eq. 6-8.
    Rows and centres are L2-normalised, s_ck the cosine of an item and centre k of class c::

        S_c = Σ_k q_k s_ck,   q = softmax_k(s_ck / gamma)
        L = mean of  -log( exp(la (S_y - margin)) / (exp(la (S_y - margin)) + Σ_{c≠y} exp(la S_c)) )
            + tau Σ_c Σ_{k<l} √(2 + eps - 2 w_ck·w_cl) / (C K (K - 1))

    Args:
        num_classes, dim, negative_fraction, sharded, seed: see :class:`~deepmetric.losses.proxies.base.ClassLoss`.
        centers_per_class: K.
        la: scale of the logits, the paper's λ.
        gamma: temperature of the choice among a class's centres, as in the paper (its inverse in some tables).
        margin: δ, on the similarity.
        tau: weight of the penalty.
        eps: added under its root; it keeps the slope finite where centres meet. The authors' code has 1e-5, other
            libraries 0 (then centres that coincide have slope 0).

    Centres begin uniform in ±1/√dim, as in the authors' code. With one class the first term is 0. Range [0, ∞).

    GPW weight of S_c: la p_c, of S_y: la (1 - p_y), each /N; S_c hands it to s_ck as q_k (1 + (s_ck - S_c) / gamma),
    which is negative for a centre further than S_c - gamma.

    >>> loss = SoftTripleLoss(num_classes=2, dim=2, centers_per_class=1, la=2.0, margin=0.2)
    >>> loss.proxies.data = torch.tensor([[1.0, 0], [0, 1]])
    >>> round(loss(torch.tensor([[0.8, 0.6]]), torch.tensor([0])).item(), 4)  # log(1 + e^0), no pair of centres
    0.6931
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        centers_per_class: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        tau: float = 0.2,
        eps: float = 1e-5,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            la,
            centers=centers_per_class,
            negative_fraction=negative_fraction,
            sharded=sharded,
            seed=seed,
        )
        if gamma <= 0:
            raise InputError(f"`gamma` of SoftTripleLoss must be above 0; got {gamma}.")
        self.gamma, self.margin, self.tau, self.eps = gamma, margin, tau, eps

    def reset_parameters(self) -> None:
        torch.nn.init.kaiming_uniform_(self.proxies, a=math.sqrt(5))

    def with_margin(self, own: Tensor, batch: ClassBatch) -> Tensor:
        return own - self.scale * self.margin

    def of_batch(self, batch: ClassBatch) -> Tensor:
        # The logits are scaled before they are pooled.
        value = self.cross_entropy(batch, pool=Softmax(self.gamma * self.scale))
        if not self.tau or self.centers == 1:
            return value
        return value + self.tau * self._spread().to(value.dtype)

    def _spread(self) -> Tensor:
        """The mean distance of two centres of a class, halved."""
        k, dim = self.centers, self.proxies.shape[1]
        proxies = self.used_proxies().to(torch.promote_types(self.proxies.dtype, torch.float32))
        # Normalised centres are not kept for the backward pass, but made again.
        blocks = proxies.split(max(BLOCK // (k * (dim + k)), 1) * k)
        if len(blocks) == 1:
            total = _distances(proxies, k, self.eps)
        else:
            parts = [checkpoint(_distances, block, k, self.eps, use_reentrant=False) for block in blocks]
            total = torch.stack(parts).sum()
        if self.share is not None and self.processes is not None:
            total = self.processes.sum(total)
        assert self.num_classes is not None
        return total / (self.num_classes * k * (k - 1))

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, centers_per_class={self.centers}, la={self.scale}, gamma={self.gamma}, "
            f"margin={self.margin}, tau={self.tau}, eps={self.eps}"
        )


def _distances(centers: Tensor, k: int, eps: float) -> Tensor:
    """Σ over the pairs of centres [classes * k, d] that belong to one class."""
    rows = unit_rows(centers).view(-1, k, centers.shape[1])
    upper = torch.ones(k, k, dtype=torch.bool, device=rows.device).triu(1)
    squared = (2 + eps - 2 * rows @ rows.transpose(1, 2))[:, upper]
    apart = squared > (0 if eps else 16 * torch.finfo(squared.dtype).eps)
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0).sum()

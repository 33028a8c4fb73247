"""Proxy-Anchor (Kim et al. 2020): each proxy against all items of the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError
from deepmetric.losses.proxies.base import ClassBatch, ClassLoss


class ProxyAnchorLoss(ClassLoss):
    r"""Each proxy draws the items of its class and pushes all others, the hardest most.

    Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, eq. 4. Rows and proxies are
    L2-normalised, S is their cosine, P⁺ the proxies whose class is in the batch::

        L = 1/|P⁺| Σ_{c in P⁺} log(1 + Σ_{i: y_i = c} exp(-alpha (S_ic - margin)))
            + 1/C  Σ_c         log(1 + Σ_{i: y_i ≠ c} exp( alpha (S_ic + margin)))

    Args:
        num_classes, dim, negative_fraction, sharded, seed: see :class:`~deepmetric.losses.proxies.base.ClassLoss`. With
            ``negative_fraction`` the second sum is over, and divided by the number of, the classes drawn.
        margin: δ.
        alpha: scale.

    Proxies begin with He's normal distribution (fan-out), as in the authors' code. An empty inner sum costs 0, so an
    empty batch costs 0. Range [0, ∞).

    GPW weight, with h = exp(-alpha (S - margin)) or exp(alpha (S + margin)): alpha h / (1 + Σ h), over |P⁺| for the
    own proxy and over C for another.

    >>> loss = ProxyAnchorLoss(num_classes=2, dim=2, margin=0.0, alpha=1.0)
    >>> loss.proxies.data = torch.tensor([[1.0, 0], [0, 1]])
    >>> round(loss(torch.tensor([[0.8, 0.6]]), torch.tensor([0])).item(), 4)  # log(1 + e^-0.8) + log(1 + e^0.6) / 2
    0.8898
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        margin: float = 0.1,
        alpha: float = 32.0,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, dim, negative_fraction=negative_fraction, sharded=sharded, seed=seed)
        if alpha <= 0:
            raise InputError(f"`alpha` of ProxyAnchorLoss must be above 0; got {alpha}.")
        self.margin, self.alpha = margin, alpha

    def reset_parameters(self) -> None:
        torch.nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def of_batch(self, batch: ClassBatch) -> Tensor:
        shift = self.alpha * self.margin
        logits, classes = self.logits(batch, self.alpha, over="items")
        pushed = softplus(logits.others + shift, threshold=40.0).sum()
        labels = batch.labels
        if self.processes is not None:
            if self.share is not None:
                pushed = self.processes.sum(pushed)
            else:
                labels = self.processes.gather(labels)
        present, item_class = labels.unique(return_inverse=True)
        drawn = softplus(_logsumexp(shift - logits.own, item_class, len(present)), threshold=40.0)
        return drawn.sum() / max(len(present), 1) + pushed / classes

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin}, alpha={self.alpha}"


def _logsumexp(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Over the values [N] of each group; every group has some."""
    top = values.new_full((groups,), -torch.inf).scatter_reduce(0, group, values.detach(), "amax")
    return values.new_zeros(groups).index_add(0, group, (values - top[group]).exp()).log() + top

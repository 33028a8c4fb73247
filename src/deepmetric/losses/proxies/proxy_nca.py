"""Proxy-NCA (Movshovitz-Attias et al. 2017) and ProxyNCA++ (Teh et al. 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.proxies.base import ClassBatch
from deepmetric.losses.proxies.softmax import SoftmaxLoss

Form = Literal["paper", "probability"]


class ProxyNCALoss(SoftmaxLoss):
    r"""Each item must be nearer to its class's proxy than to all others, by a softmax over squared distances.

    Rows and proxies are L2-normalised, D is the squared Euclidean distance, y the item's class::

        "paper":        L = mean of  -log( exp(-s D_y) / Σ_{c≠y} exp(-s D_c) )
        "probability":  L = mean of  -log( exp(-s D_y) / Σ_c exp(-s D_c) )

    "paper" is Movshovitz-Attias, Toshev, Leung, Ioffe, Singh, "No Fuss Distance Metric Learning Using Proxies",
    ICCV 2017, eq. 4: without the own proxy in the denominator it has no lower bound at 0 and never saturates.
    "probability" is Teh, DeVries, Taylor, "ProxyNCA++", ECCV 2020, eq. 6, with temperature 1/s; so are the losses
    of this name in most libraries.

    Args:
        num_classes, dim, negative_fraction, sharded, seed: see :class:`~deepmetric.losses.proxies.base.ClassLoss`.
        softmax_scale: s. ProxyNCA++ has 9 (temperature 1/9), as has the re-implementation of Proxy-NCA on CUB and
            Cars (rows and proxies of norm 3).
        form: see above.
        label_smoothing: with "probability" alone; the re-implementation of Proxy-NCA takes 0.1.

    Proxies begin normal with standard deviation 1/8, as in both codes. With one class "paper" costs 0. Range: all
    numbers for "paper", [0, ∞) for "probability".

    GPW weight of the cosine to another class c: 2s · softmax_{c≠y}, and 2s to the own proxy ("paper"); 2s p_c and
    2s (1 - p_y) ("probability"); each /N.

    >>> loss = ProxyNCALoss(num_classes=3, dim=2, softmax_scale=1.0, form="probability")
    >>> loss.proxies.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    >>> round(loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)  # log(1 + e^-2 + e^-4)
    0.1429
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        softmax_scale: float = 1.0,
        form: Form = "paper",
        label_smoothing: float = 0.0,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        check_choice("ProxyNCALoss", "form", form, Form)
        if form == "paper" and label_smoothing:
            raise InputError(
                "`label_smoothing` of ProxyNCALoss needs form 'probability': in the paper's form the own proxy is no "
                "outcome of the softmax."
            )
        # D = 2 - 2 cos: the constants of both sides cancel.
        super().__init__(
            num_classes,
            dim,
            2 * softmax_scale,
            label_smoothing=label_smoothing,
            negative_fraction=negative_fraction,
            sharded=sharded,
            seed=seed,
        )
        self.form = form

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.proxies, std=1 / 8)

    def of_batch(self, batch: ClassBatch) -> Tensor:
        if self.form == "probability":
            return self.cross_entropy(batch)
        logits, _ = self.logits(batch, self.scale)
        # With one class nothing is compared with.
        cost = torch.where(logits.others > -torch.inf, logits.others - logits.own, 0 * logits.own)
        return self.mean(cost)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, softmax_scale={self.scale / 2}, form={self.form!r}"

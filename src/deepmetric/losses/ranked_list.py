"""Ranked list loss (Wang et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison


class RankedListLoss(PairLoss):
    r"""Positives within a ball around the anchor, negatives out of a larger one, the worst weighted most.

    Wang et al., "Ranked List Loss for Deep Metric Learning", CVPR 2019, eq. 5 to 8. Rows are L2-normalised, D
    is the Euclidean distance. With h_ip = D_ip - (α - m) and h_in = α - D_in of the pairs where that is above 0,

        w_ip = exp(T_p h_ip),  w_in = exp(T_n h_in)
        l_i = (1 - λ) Σ_p w_ip h_ip / (Σ_p w_ip + c_i)  +  λ Σ_n w_in h_in / (Σ_n w_in + c_i)

    averaged over all anchors. The weights take gradients. c_i, which keeps an anchor without such pairs from 0/0,
    is 1e-5 times the number of its pairs plus one (as in PML for a batch with itself).

    Args:
        margin: m, the width between the two balls, at most α.
        alpha: α, the radius that negatives must leave, above 0 and at most 2.
        Tn: T_n, sharpness on negatives (the paper's is 10), at least 0; from 88/α on exponentials may leave float32.
        Tp: T_p, sharpness on positives; 0 weighs them equally, as the paper does.
        imbalance: λ in [0, 1], the share of the negatives.

    A half without pairs is 0; without any pair the loss is 0 with zero gradient. A negative at distance 0 has
    no direction in which to go and is left out. Range [0, 2).

    GPW weight (before the divisor), with r the half's quotient and the sums of the half:
    share · w (1 + T (h - r)) / (Σw + c) / D.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = RankedListLoss(margin=1.0)(x, torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)  # D 0.6325; 0.8944 and 0.2828; the third anchor has negatives alone
    0.5006
    """

    over_parts = True

    def __init__(
        self,
        margin: float = 0.4,
        alpha: float = 1.2,
        Tn: float = 10.0,
        Tp: float = 0.0,
        imbalance: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < alpha <= 2 or not 0 <= margin <= alpha:
            raise InputError(
                "RankedListLoss needs `alpha` above 0 and at most 2, the largest distance of unit rows, and "
                f"`margin` between 0 and `alpha`; got alpha={alpha}, margin={margin}."
            )
        if Tn < 0 or Tp < 0:
            raise InputError(f"`Tn` and `Tp` of RankedListLoss must be at least 0; got {Tn} and {Tp}.")
        if not 0 <= imbalance <= 1:
            raise InputError(f"`imbalance` of RankedListLoss must lie between 0 and 1; got {imbalance}.")
        self.margin = margin
        self.alpha = alpha
        self.Tn = Tn
        self.Tp = Tp
        self.imbalance = imbalance

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch, kind="distance")
        least = 1e-5 * (pairs.positive_count + pairs.negative_count + 1).to(batch.anchors.dtype)
        near, near_weight = pairs.positives.exponential_hinge(self.Tp, self.alpha - self.margin, above=True)
        far, far_weight = pairs.negatives.exponential_hinge(self.Tn, self.alpha, above=False)
        near, far = near / (near_weight + least), far / (far_weight + least)
        per_anchor = (1 - self.imbalance) * near + self.imbalance * far
        return per_anchor.sum() / max(len(per_anchor), 1)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, alpha={self.alpha}, Tn={self.Tn}, Tp={self.Tp}, imbalance={self.imbalance}"

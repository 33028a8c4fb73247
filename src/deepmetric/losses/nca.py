"""Neighbourhood components analysis (Goldberger et al. 2004), also over the k nearest alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

Form = Literal["log", "expected"]
Similarity = Literal["squared_distance", "cosine"]


class NCALoss(PairLoss):
    r"""The probability that a soft nearest neighbour of the anchor is of another class.

    Goldberger, Roweis, Hinton, Salakhutdinov, "Neighbourhood Components Analysis", NIPS 2004::

        p_i = Σ_{P_i} exp(scale A_ij) / Σ_{P_i and N_i} exp(scale A_ij)
        L = mean of -log p_i  ("log"),  or of 1 - p_i  ("expected")

    A is the negated squared distance or the cosine. Computed from log-sum-exps, so that no p_i underflows.

    Args:
        scale: inverse temperature. With "cosine", 2 · scale is the scale of squared distances of unit rows.
        form: "log" (the likelihood of the right class) or "expected" (the share of errors of the soft
            neighbour, what both NCA papers minimise; its gradient vanishes where p_i is near 0 or 1).
        similarity: A is minus the "squared_distance", or the "cosine".
        neighbours: only the k most similar of all positives and negatives count; where no positive is among
            them, these and the nearest positive. The kNN softmax that Deep_Metric's NCA means (k 32, cosine,
            scale 16); its released code selects the furthest. None: all.
        normalize: L2-normalise rows first; False takes distances of the rows as given, as in the papers
            (ignored by "cosine").

    The mean is over anchors with a positive; others are left out. No such anchor: 0 with zero gradient. No
    negatives: 0. Range [0, ∞) for "log", [0, 1] for "expected".

    GPW weight of A (before the mean), q_ij = p_ij/p_i: log scale (q_ij - p_ij) on positives and scale p_ij on
    negatives; expected scale p_ij (1 - p_i) and scale p_ij p_i. The nearest positive gets the most.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = NCALoss(scale=4.0)
    >>> round(loss(x, torch.tensor([0, 0, 1])).item(), 4)  # (log(1 + e^-1.6) + log(1 + e^1.28)) / 2
    0.8546
    """

    over_parts = True

    def __init__(
        self,
        scale: float = 1.0,
        form: Form = "log",
        similarity: Similarity = "squared_distance",
        neighbours: int | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_choice("NCALoss", "form", form, Form)
        check_choice("NCALoss", "similarity", similarity, Similarity)
        if scale <= 0:
            raise InputError(f"`scale` of NCALoss must be above 0; got {scale}.")
        if neighbours is not None and neighbours < 1:
            raise InputError(
                f"`neighbours` of NCALoss must be at least 1, or None for all; got {neighbours}."
            )
        self.scale = scale
        self.form = form
        self.similarity = similarity
        self.neighbours = neighbours
        self.normalize = normalize or similarity == "cosine"

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(
            *batch,
            kind="dot" if self.similarity == "cosine" else "squared",
            normalize=self.normalize,
        )
        scale = self.scale if self.similarity == "cosine" else -self.scale
        answerable = pairs.positive_count > 0
        if self.neighbours is not None:
            right, wrong = _nearest(pairs, scale, self.neighbours)
        else:
            right, wrong = pairs.positives.logsumexp(scale), pairs.negatives.logsumexp(scale)
        # The logit of an error; an anchor without positives has none.
        logit = torch.where(answerable, wrong - torch.where(answerable, right, 0), 0)
        cost = softplus(logit, threshold=40.0) if self.form == "log" else torch.sigmoid(logit)
        return torch.where(answerable, cost, 0).sum() / answerable.sum().clamp_min(1)

    def extra_repr(self) -> str:
        return (
            f"scale={self.scale}, form={self.form!r}, similarity={self.similarity!r}, "
            f"neighbours={self.neighbours}, normalize={self.normalize}"
        )


def _nearest(pairs: Comparison, scale: float, k: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exps [N] of scale * v of the positives and of the negatives among the k largest; -inf over
    nothing. Where no positive is among the k, the nearest joins them. What ties with the k-th but for rounding, as
    copies of one item do, counts too, of negatives k at most."""
    listed = pairs.positive_list
    positive = listed.padded(scale * listed.values, -torch.inf)  # [N, K]
    negative, found = pairs.chosen(pairs.negatives.topk(k, scale))
    negative = torch.where(found, scale * negative, -torch.inf)  # [N, k]
    every = torch.cat([positive, negative], 1).detach()
    last = every.topk(min(k, every.shape[1]), 1).values[:, -1:]
    rounding = 16 * torch.finfo(every.dtype).eps * abs(scale)
    last = last - rounding * pairs.anchors.detach().square().sum(1, keepdim=True)
    last_positive = torch.minimum(last, positive.detach().amax(1, keepdim=True))
    return (
        _logsumexp(torch.where(positive >= last_positive, positive, -torch.inf)),
        _logsumexp(torch.where(negative >= last, negative, -torch.inf)),
    )


def _logsumexp(exponents: Tensor) -> Tensor:
    """Over each row; -inf over nothing, with zero gradient instead of NaN."""
    some = (exponents > -torch.inf).any(1)
    return torch.where(some, torch.where(some[:, None], exponents, 0).logsumexp(1), -torch.inf)

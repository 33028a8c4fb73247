"""Lifted structure loss (Song et al. 2016), its generalised form (Hermans et al. 2017) and Deep_Metric's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepmetric.errors import InputError, check_choice
from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison

Form = Literal["original", "generalized", "modified"]
Distance = Literal["distance", "squared_distance"]
Reduction = Literal["anchors", "kept"]
Incomplete = Literal["skip", "count"]


class LiftedStructureLoss(PairLoss):
    r"""A positive pair against all negatives of its ends at once, through a smooth maximum.

    With D the Euclidean distance, S the cosine, P_i and N_i the positives and negatives of anchor i,
    [z]₊ = max(0, z):

    - "original" (Song, Xiang, Jegelka, Savarese, CVPR 2016, eq. 4), over the P ordered positive pairs::

          J_ij = log(Σ_{N_i} exp(margin - D_ik) + Σ_{N_j} exp(margin - D_jl)) + D_ij - positive_margin
          L = 1/(2P) Σ [J_ij]₊²

      N_j are the negatives of the other end. Against a reference set a positive that is no anchor's own copy
      has no negatives of its own: then those of the anchor alone count.
    - "generalized" (Hermans, Beyer, Leibe, arXiv 1703.07737)::

          l_i = [log Σ_{P_i} exp(D_ij - positive_margin) + log Σ_{N_i} exp(margin - D_ik)]₊

    - "modified" (the code of Wang et al., Deep_Metric), on cosines, without hinge or margin::

          l_i = 2/alpha log Σ_{P_i} exp(-alpha S_ij) + 2/beta log Σ_{N_i} exp(beta S_ik)

    Args:
        form: see above.
        margin: of the negatives, None for 1 ("original", "generalized").
        positive_margin: None for 0 ("original", "generalized").
        distance: D is the "distance" (None: this) or the "squared_distance" ("original", "generalized").
        normalize: L2-normalise rows first. None: no, as in both papers; "modified" always does.
        alpha: sharpness of the positives, None for 2 ("modified").
        beta: sharpness of the negatives, None for 40 ("modified").
        epsilon: keep only positives with S < max S of the negatives + epsilon and negatives with S > min S of
            the positives - epsilon, as multi-similarity does; None: no mining ("modified").
        reduction: what Σ l_i is divided by, the number of "anchors" or of those "kept", that is not skipped
            (not "original").
        incomplete: what an anchor without positives or without negatives does: "skip" costs 0; "count" takes
            the empty log-sum as 0 and pays for the other, as PML does ("generalized").

    Range [0, ∞), of "modified" all numbers. No positive pair or no negative: 0 with zero gradient. At D = 0
    the derivative is 0.

    GPW weight. Original: with π the softmax of the exponents inside J_ij, [J_ij]₊/(P D_ij) on the positive
    pair and [J_ij]₊ π_ik/(P D_ik) on the negatives. Generalized: the softmax of D over P_i and of -D over
    N_i, each / D and the divisor, while l_i > 0. Modified: (2/N) softmax(-alpha S) and (2/N) softmax(beta S).

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = LiftedStructureLoss("generalized", positive_margin=0.5)
    >>> round(loss(x, torch.tensor([0, 0, 1])).item(), 4)  # (0.6325 - 0.5 + 1 - [0.8944, 0.2828]) / 3
    0.3625
    """

    over_parts = True

    def __init__(
        self,
        form: Form = "original",
        margin: float | None = None,
        positive_margin: float | None = None,
        distance: Distance | None = None,
        normalize: bool | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        epsilon: float | None = None,
        reduction: Reduction = "anchors",
        incomplete: Incomplete = "skip",
    ) -> None:
        super().__init__()
        check_choice("LiftedStructureLoss", "form", form, Form)
        check_choice("LiftedStructureLoss", "distance", distance or "distance", Distance)
        check_choice("LiftedStructureLoss", "reduction", reduction, Reduction)
        check_choice("LiftedStructureLoss", "incomplete", incomplete, Incomplete)
        modified = form == "modified"
        foreign: dict[str, object] = {"alpha": alpha, "beta": beta, "epsilon": epsilon}
        if modified:
            foreign = {"margin": margin, "positive_margin": positive_margin, "distance": distance}
            foreign["normalize"] = False if normalize is False else None
        if form == "original":
            foreign["reduction"] = None if reduction == "anchors" else reduction
        if form != "generalized":
            foreign["incomplete"] = None if incomplete == "skip" else incomplete
        given = [name for name, value in foreign.items() if value is not None]
        if given:
            raise InputError(
                f"`{given[0]}` of LiftedStructureLoss has no meaning with form={form!r}. Leave it out, or "
                "choose another form."
            )
        self.form = form
        self.margin = 1.0 if margin is None else margin
        self.positive_margin = 0.0 if positive_margin is None else positive_margin
        self.distance: Distance = "distance" if distance is None else distance
        self.normalize = modified or bool(normalize)
        self.alpha = 2.0 if alpha is None else alpha
        self.beta = 40.0 if beta is None else beta
        if self.alpha <= 0 or self.beta <= 0:
            raise InputError(
                f"`alpha` and `beta` of LiftedStructureLoss must be above 0; got {alpha} and {beta}."
            )
        self.epsilon = epsilon
        self.reduction = reduction
        self.incomplete = incomplete

    def of_batch(self, batch: Batch) -> Tensor:
        kind = "dot"
        if self.form != "modified":
            kind = "squared" if self.distance == "squared_distance" else "distance"
        pairs = Comparison(
            *batch,
            kind=kind,
            normalize=self.normalize,
        )
        if self.form == "original":
            return self._original(pairs)
        if self.form == "generalized":
            below = pairs.positives.logsumexp(1.0) - self.positive_margin
            above = pairs.negatives.logsumexp(-1.0) + self.margin
        elif self.epsilon is None:
            below = 2 / self.alpha * pairs.positives.logsumexp(-self.alpha)
            above = 2 / self.beta * pairs.negatives.logsumexp(self.beta)
        else:
            least = pairs.positives.min()
            above, most = pairs.negatives.logsumexp_and_hardest(self.beta, beyond=least - self.epsilon)
            above = 2 / self.beta * above
            below = 2 / self.alpha * pairs.positives.logsumexp(-self.alpha, beyond=most + self.epsilon)
        return self._per_anchor(below, above)

    def _original(self, pairs: Comparison) -> Tensor:
        listed = pairs.positive_list
        reach = pairs.negatives.logsumexp(-1.0) + self.margin  # [N], -inf without negatives
        here = reach[listed.anchor]
        there = torch.full_like(here, -torch.inf)
        if pairs.own is not None and len(pairs.own):
            # The other end is an anchor too where it is an anchor's own copy.
            own, anchor = pairs.own.sort()
            place = torch.searchsorted(own, listed.ref).clamp_max(len(own) - 1)
            there = torch.where(own[place] == listed.ref, reach[anchor[place]], there)
        some = (here > -torch.inf) | (there > -torch.inf)
        here = torch.where(some, here, 0)
        cost = torch.logaddexp(here, there) + listed.values - self.positive_margin
        cost = torch.where(some, cost, 0).relu()
        return listed.total(cost.square()).sum() / (2 * pairs.positive_count.sum().clamp_min(1))

    def _per_anchor(self, below: Tensor, above: Tensor) -> Tensor:
        some_below, some_above = below > -torch.inf, above > -torch.inf
        kept = some_below | some_above if self.incomplete == "count" else some_below & some_above
        cost = torch.where(kept & some_below, below, 0) + torch.where(kept & some_above, above, 0)
        if self.form == "generalized":
            cost = cost.relu()
        count = kept.sum() if self.reduction == "kept" else torch.tensor(len(cost), device=cost.device)
        return cost.sum() / count.clamp_min(1)

    def extra_repr(self) -> str:
        if self.form == "modified":
            settings = f"alpha={self.alpha}, beta={self.beta}, epsilon={self.epsilon}"
        else:
            settings = (
                f"margin={self.margin}, positive_margin={self.positive_margin}, distance={self.distance!r}, "
                f"normalize={self.normalize}"
            )
        rest = "" if self.form == "original" else f", reduction={self.reduction!r}"
        rest += f", incomplete={self.incomplete!r}" if self.form == "generalized" else ""
        return f"form={self.form!r}, {settings}{rest}"

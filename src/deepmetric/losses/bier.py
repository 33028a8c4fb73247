"""Groups of an embedding as learners of online gradient boosting (BIER and A-BIER, Opitz et al. 2017, 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from deepmetric.errors import InputError, check_choice, check_widths
from deepmetric.losses.base import PairLoss
from deepmetric.losses.diversity import ActivationDiversity, AdversarialDiversity
from deepmetric.losses.inputs import Batch
from deepmetric.losses.parts import compare_parts
from deepmetric.losses.streamed.gradients import without_autocast

Boosting = Literal["shrinkage", "eta"]
Diversity = Literal["activation", "adversarial"]

# What a negative's boosting weight is multiplied by in the shrinkage mode of the authors' code.
NEGATIVE_WEIGHT = 2.0
# Where an attached layer keeps the features that entered it last: with the layer, so that a model's copy has its own.
ENTERED = "_bier_features"


def _keep_what_enters(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if layer.training:
        setattr(layer, ENTERED, inputs[0].detach())


class BIERLoss(PairLoss):
    r"""Binomial deviance of each group of the embedding, later groups on what the earlier ones got wrong.

    Opitz, Waltner, Possegger, Bischof, "BIER: Boosting Independent Embeddings Robustly", ICCV 2017, and "Deep Metric
    Learning with BIER", arXiv:1801.04815. With s_m(i, j) the cosine of group m, and y = 1 on a positive and
    -cost on a negative pair, learner m's margin of a pair and its cost are::

        z_m = alpha (s_m - base) y          log(1 + exp(-z_m))

    Learner m's loss is the sum of w_m · cost / count over all pairs, count being the number of positives for positives
    and of negatives for negatives (the authors' code counts an item's pair with itself as a positive one); L is the
    mean over learners. The boosting weights w_m are constants, and those of the first learner are 1. They follow from
    an activation a of each pair, which learners add to in turn:

    ===========  ==========================  =================================  ============================
    boosting     a before the first learner  a after learner m = 1, 2, ...      w_{m+1}
    ===========  ==========================  =================================  ============================
    shrinkage    ``initial``                 a + shrinkage · z_m                σ(-a), twice that if negative
    eta          0                           (1 - η) a + η z_m, η = 2/(m + 1)   σ(-a)
    ===========  ==========================  =================================  ============================

    "eta" is the papers' algorithm (σ(-a) is the slope of the deviance at a), "shrinkage" the default of the authors'
    code.

    ``diversity`` adds diversity_weight · :class:`~deepmetric.losses.diversity.ActivationDiversity` or
    :class:`~deepmetric.losses.diversity.AdversarialDiversity`, in training mode and for a batch with itself. It needs
    the embedding layer: call :meth:`attach` once (in a recipe, :class:`deepmetric.training.BIER` does).

    Args:
        groups: widths of the groups, side by side in the embedding; increasing, in the papers.
        alpha: slope of the positives (alpha · cost that of the negatives).
        base: the cosine at which a pair costs log 2.
        cost: C, of the negatives.
        boosting: see the table.
        shrinkage: what an earlier learner's margin counts for ("shrinkage").
        initial: the activation to begin with ("shrinkage").
        diversity: which regulariser of the groups; None: none.
        diversity_weight: λ_div; the authors run A-BIER with 5e-5.
        norm_weight: λ_w, of the norm penalties within the regulariser, 1e5 in that run.
        hidden: width of the adversarial regressors' hidden layer.

    Range [0, ∞) without adversarial diversity. No pair: 0 with zero gradient. Matrices [N, M] of all pairs are held.

    GPW weight of learner m (M learners): w_m · alpha σ(-z_m) / (M |P|) and w_m · alpha cost σ(-z_m) / (M |N|), P and N
    all positive and negative pairs.

    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> loss = BIERLoss(groups=[2], cost=5.0)
    >>> round(loss(x, torch.tensor([0, 0, 1])).item(), 4)  # log(1 + e^-0.6) + (log(1 + e^1) + log(1 + e^4.6))/2
    3.3991
    """

    def __init__(
        self,
        groups: Sequence[int] = (96, 160, 256),
        alpha: float = 2.0,
        base: float = 0.5,
        cost: float = 25.0,
        boosting: Boosting = "shrinkage",
        shrinkage: float = 0.06,
        initial: float = 0.5,
        diversity: Diversity | None = None,
        diversity_weight: float = 5e-5,
        norm_weight: float = 1e5,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        check_choice("BIERLoss", "boosting", boosting, Boosting)
        self.groups = check_widths("BIERLoss", "groups", groups)
        for name, value in (("alpha", alpha), ("cost", cost)):
            if value <= 0:
                raise InputError(f"`{name}` of BIERLoss must be above 0; got {value}.")
        self.alpha, self.base, self.cost = alpha, float(base), cost
        self.boosting, self.shrinkage, self.initial = boosting, shrinkage, initial
        self.diversity_weight = diversity_weight
        self.diversity: ActivationDiversity | None = None
        if diversity is not None:
            check_choice("BIERLoss", "diversity", diversity, Diversity)
            if diversity == "activation":
                self.diversity = ActivationDiversity(self.groups, norm_weight)
            else:
                self.diversity = AdversarialDiversity(self.groups, hidden, norm_weight)
        # In a list, because the layer belongs to the model and not to this module.
        self._layer: list[nn.Linear] = []

    def attach(self, layer: nn.Linear) -> None:
        """Let the regulariser see ``layer``, the last of the model, and the features that enter it in training.

        Raises:
            InputError: the layer is not linear, or has other than sum(groups) units.
        """
        if not isinstance(layer, nn.Linear):
            raise InputError(
                f"BIERLoss.attach takes the model's last torch.nn.Linear; got {type(layer).__name__}. "
                "Hint: `model.head.linear`."
            )
        if layer.out_features != sum(self.groups):
            raise InputError(
                f"the embedding layer has {layer.out_features} units, the groups of BIERLoss "
                f"{', '.join(map(str, self.groups))} together {sum(self.groups)}. Give both the same groups."
            )

        if not hasattr(layer, ENTERED):
            setattr(layer, ENTERED, None)
            layer.register_forward_pre_hook(_keep_what_enters)
        self._layer = [layer]

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        self_index: Tensor | None = None,
    ) -> Tensor:
        """As of PairLoss, and without references in training mode the regulariser."""
        loss = super().forward(embeddings, labels, ref_emb, ref_labels, self_index)
        if self.diversity is None or not self.training or ref_emb is not None:
            return loss
        with without_autocast(embeddings.device):
            return loss + self.diversity_weight * self._diversity()

    def of_batch(self, batch: Batch) -> Tensor:
        parts = list(compare_parts("BIERLoss", batch, self.groups, "dot"))
        _, positive, negative = parts[0].matrix
        cosines = torch.stack([part.matrix[0] for part in parts])
        margins = self._margins(cosines, positive)
        share = sum(side.to(cosines) / side.sum().clamp_min(1) for side in (positive, negative))
        weights = self.boosting_weights(cosines, positive)
        return (weights * share * softplus(-margins)).sum() / len(self.groups)

    @torch.no_grad()
    def boosting_weights(self, cosines: Tensor, positive: Tensor) -> Tensor:
        """The weight of each pair for each learner.

        Args:
            cosines: [M, ...], of a pair by learner, in the learners' order.
            positive: bool [...], whether a pair is positive; else it is negative.
        """
        margins = self._margins(cosines, positive)
        weights = [torch.ones_like(margins[0])]
        activation = torch.full_like(margins[0], self.initial if self.boosting == "shrinkage" else 0.0)
        for m, margin in enumerate(margins[:-1], start=1):
            if self.boosting == "shrinkage":
                activation = activation + self.shrinkage * margin
                side = torch.where(positive, 1.0, NEGATIVE_WEIGHT)
                weights.append(side * torch.sigmoid(-activation))
            else:
                eta = 2 / (m + 1)
                activation = (1 - eta) * activation + eta * margin
                weights.append(torch.sigmoid(-activation))
        return torch.stack(weights)

    def _margins(self, cosines: Tensor, positive: Tensor) -> Tensor:
        return self.alpha * (cosines - self.base) * torch.where(positive, 1.0, -self.cost).to(cosines)

    def _diversity(self) -> Tensor:
        assert self.diversity is not None
        features = getattr(self._layer[0], ENTERED) if self._layer else None
        if features is None:
            raise InputError(
                "BIERLoss with `diversity` needs to see the embedding layer: call loss.attach(model.head.linear) "
                "before the first batch; in a recipe add `procedure: {class_path: deepmetric.training.BIER}`."
            )
        if self.processes is not None:  # each has seen its part of them
            features = self.processes.gather(features)
        return self.diversity(features, self._layer[0].weight)

    def extra_repr(self) -> str:
        return (
            f"groups={self.groups}, alpha={self.alpha}, base={self.base}, cost={self.cost}, "
            f"boosting={self.boosting!r}, shrinkage={self.shrinkage}, initial={self.initial}, "
            f"diversity_weight={self.diversity_weight}"
        )

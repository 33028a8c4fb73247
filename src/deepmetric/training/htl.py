"""The procedure of the hierarchical triplet loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from deepmetric.data import AnchorNeighbourSampler
from deepmetric.errors import InputError, check_choice
from deepmetric.losses import ClassTree, HierarchicalTripletLoss
from deepmetric.training.class_tree import Linkage, build_class_tree, class_means, nearest_classes
from deepmetric.training.procedure import Procedure, embed_training_set, part_of_loss

if TYPE_CHECKING:
    from deepmetric.training.trainer import Trainer


class HTL(Procedure):
    """Builds the tree of classes anew each epoch: margins for the loss, nearest classes for the batches.

    Ge, Huang, Dong, Scott, "Deep Metric Learning with Hierarchical Triplet Loss", ECCV 2018. At the start of an epoch,
    the first included, all training items are embedded (evaluation mode, the model's own preprocessing, no
    augmentation) and compared class by class; see :func:`build_class_tree`. The recipe's loss must be
    :class:`deepmetric.losses.HierarchicalTripletLoss`. Its sampler may be any; with
    :class:`deepmetric.data.AnchorNeighbourSampler` batches are drawn from the tree too, as in the paper.

    Args:
        levels: L of the tree.
        linkage: how far nodes of several classes are from each other; the paper does not say.
        refresh_every: steps between two trees; null: an epoch of the sampler.
        batch_size: images embedded at a time.

    Raises:
        InputError: numbers out of range, an unknown linkage; in :meth:`setup`, when the loss is another one.
    """

    def __init__(
        self,
        levels: int = 16,
        linkage: Linkage = "average",
        refresh_every: int | None = None,
        batch_size: int = 128,
    ) -> None:
        if refresh_every is not None and refresh_every < 1:
            raise InputError(f"`refresh_every` of HTL must be at least 1 or null, got {refresh_every}")
        if levels < 1:
            raise InputError(f"`levels` of HTL must be at least 1, got {levels}")
        check_choice("HTL", "linkage", linkage, Linkage)
        self.levels = levels
        self.linkage: Linkage = linkage
        self.given_refresh, self.batch_size = refresh_every, batch_size

    def setup(self, trainer: Trainer) -> None:
        self.loss = part_of_loss(trainer, HierarchicalTripletLoss, "HTL")
        self.trainer, self.sampler = trainer, trainer.sampler
        self.refresh_every = self.given_refresh or len(self.sampler)

    def refresh(self) -> None:
        trainer = self.trainer
        embeddings = embed_training_set(trainer, self.batch_size)
        classes = class_means(embeddings, trainer.train_data.labels)
        self.loss.tree = build_class_tree(classes, self.levels, self.linkage)
        if isinstance(self.sampler, AnchorNeighbourSampler):
            self.sampler.neighbours = nearest_classes(classes, self.sampler.neighbours_needed)

    def metrics(self) -> dict[str, float]:
        """The mean spread d_0, and at which level half of the pairs of classes have merged."""
        tree = self.loss.tree
        if tree is None:
            return {}
        return {"tree_d0": float(tree.thresholds[0]), "tree_half_merged": _half_merged(tree.nodes)}

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.loss.tree is not None:
            state["tree"] = self.loss.tree._asdict()
        if isinstance(self.sampler, AnchorNeighbourSampler) and self.sampler.neighbours is not None:
            state["neighbours"] = torch.from_numpy(self.sampler.neighbours).int()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "tree" in state:
            self.loss.tree = ClassTree(**state["tree"])
        if "neighbours" in state and isinstance(self.sampler, AnchorNeighbourSampler):
            self.sampler.neighbours = state["neighbours"].numpy()


def _half_merged(nodes: torch.Tensor) -> int:
    """The first level at which at least half of all pairs of classes share a node."""
    c = nodes.shape[1]
    for level, row in enumerate(nodes):
        sizes = row.unique(return_counts=True)[1]
        if int((sizes * (sizes - 1)).sum()) * 2 >= c * (c - 1):
            return level
    return len(nodes) - 1

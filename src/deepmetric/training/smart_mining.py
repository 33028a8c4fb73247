"""Smart mining: negatives from an index over the whole training set, as hard as a controller says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepmetric.data import TripletSampler
from deepmetric.errors import InputError
from deepmetric.losses import TripletGlobalLoss
from deepmetric.training.class_tree import BLOCK
from deepmetric.training.hardness import HardnessController
from deepmetric.training.procedure import Procedure, embed_training_set, part_of_loss

if TYPE_CHECKING:
    from deepmetric.training.trainer import Trainer


class SmartMining(Procedure):
    """Triplets whose negatives are searched in the whole training set, at a hardness that adapts.

    A reconstruction of Harwood, Kumar B G, Carneiro, Reid, Drummond, "Smart Mining for Deep Metric Learning", ICCV
    2017. From the paper's abstract: triplet and global loss, a fast search of the entire training set, an adaptive
    controller of the mining's settings. The rest (what is searched how, the controller's signal and law, all
    numbers) is not verified against the paper, and there is no official code.

    Every ``index_every`` steps the training set is embedded (evaluation mode, no augmentation) and indexed with FAISS,
    and each item's ``neighbours`` nearest items are listed. Of these the ones of other classes, nearest first, are
    its candidates; every ``refresh_every`` steps the sampler gets ``window`` of them, which begin at the
    controller's offset: at 0 with the nearest, just below 1 with the last of the list, and at 1 past its end, where
    the negative is any item of another class, as it is for an item whose list has no other class. Without that way
    out the controller could not get away from negatives that are too hard, for the list may be but the nearest few
    of the training set. Positives are drawn from the ``far_positives`` furthest of the anchor's class.

    The controller's signal is the fraction of a step's triplets that cost something; see
    :class:`HardnessController`.

    Args:
        neighbours: length of an item's list, its own class included; lists are as short as the training set at most.
        window: candidates that a negative is drawn from.
        far_positives: candidates that a positive is drawn from; 0: the whole class.
        refresh_every: steps between two moves of the controller.
        index_every: steps between two indexes, counted in whole stretches of ``refresh_every``; null: an epoch of the
            sampler.
        index: "flat" is exact, "hnsw" an approximate graph, quicker from some 60,000 items on.
        target: of the fraction of triplets that cost something.
        gain, smoothing, offset: of the controller.
        batch_size: images embedded at a time.

    Raises:
        InputError: numbers out of range; in :meth:`setup`, a recipe without TripletSampler or TripletGlobalLoss.
    """

    def __init__(
        self,
        neighbours: int = 200,
        window: int = 5,
        far_positives: int = 0,
        refresh_every: int = 20,
        index_every: int | None = None,
        index: Literal["flat", "hnsw"] = "flat",
        target: float = 0.5,
        gain: float = 0.5,
        smoothing: float = 0.9,
        offset: float = 0.5,
        batch_size: int = 128,
    ) -> None:
        for name, number in (
            ("neighbours", neighbours),
            ("window", window),
            ("refresh_every", refresh_every),
            ("index_every", 1 if index_every is None else index_every),
        ):
            if number < 1:
                raise InputError(f"`{name}` of SmartMining must be at least 1, got {number}")
        if far_positives < 0:
            raise InputError(f"`far_positives` of SmartMining must be at least 0, got {far_positives}")
        self.neighbours, self.window, self.far_positives = neighbours, window, far_positives
        self.refresh_every, self.index_every, self.batch_size = refresh_every, index_every, batch_size
        self.index: Literal["flat", "hnsw"] = index
        self.controller = HardnessController(target, gain, smoothing, offset)
        self.candidates: np.ndarray | None = None  # [N, K] items of other classes, nearest first, then -1
        self.indexed_at = 0

    def setup(self, trainer: Trainer) -> None:
        self.loss = part_of_loss(trainer, TripletGlobalLoss, "SmartMining")
        if not isinstance(trainer.sampler, TripletSampler):
            raise InputError(
                f"the procedure SmartMining needs the sampler deepmetric.data.TripletSampler, and the recipe has "
                f"{type(trainer.sampler).__name__}."
            )
        self.trainer, self.sampler = trainer, trainer.sampler
        if self.index_every is None:
            self.index_every = len(self.sampler)

    def refresh(self) -> None:
        assert self.index_every is not None
        step = self.trainer.step
        self.controller.update()
        if self.candidates is None or step - self.indexed_at >= self.index_every:
            embeddings = embed_training_set(self.trainer, self.batch_size)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
            labels = self.trainer.train_data.labels
            self.candidates = others_by_nearness(embeddings, labels, self.neighbours, self.index)
            if self.far_positives:
                self.sampler.positives = furthest_of_class(embeddings, labels, self.far_positives)
            self.indexed_at = step
        self._deal()

    def _deal(self) -> None:
        assert self.candidates is not None
        self.sampler.negatives = windows(self.candidates, self.window, self.controller.offset)

    def after_step(self, embeddings: Tensor, labels: Tensor, indices: Tensor, loss: Tensor) -> None:
        to_positive, to_negative = self.loss.distances(embeddings, labels)
        self.controller.observe(float((to_positive - to_negative + self.loss.margin > 0).float().mean()))

    def metrics(self) -> dict[str, float]:
        return {"mining_offset": self.controller.offset, "active_triplets": self.controller.mean}

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"controller": self.controller.state_dict(), "indexed_at": self.indexed_at}
        if self.candidates is not None:
            state["candidates"] = torch.from_numpy(self.candidates)
        if self.sampler.positives is not None:
            state["positives"] = torch.from_numpy(self.sampler.positives)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        self.indexed_at = state["indexed_at"]
        if "positives" in state:
            self.sampler.positives = state["positives"].numpy()
        if "candidates" in state:
            self.candidates = state["candidates"].numpy()
            self._deal()


def others_by_nearness(
    embeddings: np.ndarray, labels: np.ndarray, neighbours: int, index: Literal["flat", "hnsw"] = "flat"
) -> np.ndarray:
    """Among the nearest ``neighbours`` of each unit row of [N, d] those of other classes, nearest first, then -1: int32
    [N, K], K the most that an item has."""
    from deepmetric.search.kinds import build, search

    # An approximate search may miss the item itself, so one more is asked for and whatever is of its class dropped.
    _, near = search(build(embeddings, index)[0], embeddings, min(neighbours + 1, len(embeddings)))
    same = labels[near] == labels[:, None]
    order = np.argsort(same, axis=1, kind="stable")
    near = np.where(same, -1, near)
    longest = int((~same).sum(1).max())
    return np.take_along_axis(near, order, axis=1)[:, :longest].astype(np.int32)


def windows(candidates: np.ndarray, width: int, offset: float) -> np.ndarray:
    """Of each row of candidates (-1 from some column on) up to ``width`` in a row, then -1: [N, width].

    They begin at ``offset`` in [0, 1] of the way from the row's first to the place behind its last, where none are.
    """
    found = (candidates >= 0).sum(1, keepdims=True)
    start = np.rint(offset * found).astype(np.int64)
    columns = start + np.arange(width)
    if not candidates.shape[1]:
        return np.full((len(candidates), width), -1, dtype=candidates.dtype)
    taken = np.take_along_axis(candidates, columns.clip(max=candidates.shape[1] - 1), axis=1)
    return np.where(columns < found, taken, -1)


def furthest_of_class(embeddings: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` furthest other items of each item's class, -1 where the class has fewer: int32 [N, count]."""
    table = np.full((len(labels), count), -1, dtype=np.int32)
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        k = min(count, len(members) - 1)
        step = max(1, BLOCK // len(members))  # a class may be large
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            similarity = embeddings[rows] @ embeddings[members].T
            similarity[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf  # itself comes last
            table[rows, :k] = members[np.argsort(similarity, axis=1, kind="stable")[:, :k]]
    return table

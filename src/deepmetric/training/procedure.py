"""A part of training that goes beyond a loss: what a recipe's ``procedure`` switches on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.evaluation import embed_dataset

if TYPE_CHECKING:
    from deepmetric.training.trainer import Trainer

Part = TypeVar("Part", bound=nn.Module)


class Procedure:
    """Does nothing at each of the moments at which a subclass may act. In the order of a run:

    1. :meth:`setup`, when all parts are built, whether the run is new or resumed;
    2. :meth:`begin`, before a new run's first evaluation, or :meth:`load_state_dict` in a resumed one;
    3. :meth:`refresh`, before steps 0, ``refresh_every``, 2 · ``refresh_every``, ...;
    4. :meth:`after_step`, after each optimiser step; :meth:`metrics` when a line of metrics.jsonl is due.

    A checkpoint is taken between steps, before the refresh that may follow. A resumed run is the unbroken one if
    whatever refresh and after_step left behind, and the sampler or the loss did not save, is in the state.

    Under torchrun every process has a procedure, and all of them act at the same moments with the same model. After a
    refresh all take up the state of the first process's, and each is shown the whole batch after a step. So what is
    a function of these needs no thought of processes; random numbers come from a generator of the procedure's own.

    Attributes:
        refresh_every: steps between two refreshes; 0: never. May be set in :meth:`setup`, when the length of an
            epoch, ``len(trainer.sampler)``, is known. Batches are never read ahead across a refresh, so only there
            may a procedure change what the sampler deals next. The sampler's length must stay as it was.
    """

    refresh_every: int = 0

    def setup(self, trainer: Trainer) -> None:
        """Keep what is needed of ``model``, ``loss``, ``sampler``, ``train_data``, ``optimizer`` and ``device``.

        ``loss`` is the memory where the recipe has one. Raise InputError where the parts do not fit the procedure.
        """

    def begin(self) -> None:
        """Once, before a new run: for example, weights that training is to begin with. Not when resumed."""

    def refresh(self) -> None:
        """At the start of each stretch of ``refresh_every`` steps: look at the whole training set, change the
        sampler's diet. Leave the model in the mode in which it was found."""

    def after_step(self, embeddings: Tensor, labels: Tensor, indices: Tensor, loss: Tensor) -> None:
        """What the step computed, before its update: embeddings float32 [N, d], labels int64 [N], positions in the
        training set int64 [N], the scalar loss; all without gradient. Of several processes the rows of all."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log beside the loss."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and containers of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` was taken, the sampler's diet included."""


def embed_training_set(trainer: Trainer, batch_size: int) -> np.ndarray:
    """All training items as :meth:`Procedure.refresh` looks at them: float32 [N, d], in the data's order.

    In evaluation mode, with the model's own preprocessing in place of the augmentation; modes are put back. Of several
    processes, which all call this together, each embeds a part.
    """
    team, data = trainer.team, trainer.train_data
    mine = np.array_split(np.arange(len(data)), team.size)[team.rank]
    rows = embed_dataset(
        trainer.model, data.subset(mine), batch_size=batch_size, workers=trainer.loop.workers
    )
    return team.rows_of_all(torch.from_numpy(rows).to(trainer.device)).cpu().numpy()


def part_of_loss(trainer: Trainer, kind: type[Part], procedure: str) -> Part:
    """The loss of class ``kind``, alone or within a memory.

    Raises:
        InputError: the recipe has another loss.
    """
    for part in trainer.loss.modules():
        if isinstance(part, kind):
            return part
    raise InputError(
        f"the procedure {procedure} needs the loss {kind.__name__}, and the recipe has "
        f"{type(trainer.loss).__name__}. Set loss.class_path to deepmetric.losses.{kind.__name__}, or leave the "
        f"procedure out."
    )

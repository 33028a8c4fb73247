"""What a recipe says: the parts of a training run, each a factory, and the settings of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn
from torch.optim import Optimizer

from deepmetric.data import Dataset, PlannedSampler
from deepmetric.errors import InputError
from deepmetric.losses import CrossBatchMemory
from deepmetric.models import EmbeddingModel
from deepmetric.training.procedure import Procedure
from deepmetric.training.schedules import Schedule

# `Optional[X]` and quoted-free annotations: jsonargparse reads these at run time, also on Python 3.10.


@dataclass
class LearningRates:
    """Learning rates of the parts of a run; a part left out has the optimiser's own.

    Args:
        backbone: of the backbone's parameters.
        head: of the pooling and the head.
        loss: of the parameters of the loss (proxies, class weights, boundaries).

    Raises:
        InputError: a rate is negative or infinite. At 0 a part's parameters stay as they are; statistics of batch
            normalisation move on, unless the model has ``freeze_batchnorm``.
    """

    backbone: float | None = None
    head: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        for part, rate in vars(self).items():
            if rate is not None and not 0 <= rate < math.inf:
                raise InputError(
                    f"`learning_rates.{part}` is {rate}; expected a number from 0, or null for the optimiser's own."
                )


@dataclass
class Loop:
    """Settings of the training loop.

    Args:
        steps: number of optimiser steps; 0 leaves the model untrained.
        evaluate_every: steps between evaluations on the validation classes (also at the start and at the end).
        checkpoint_every: steps between checkpoints; each evaluation writes one too.
        log_every: steps between lines of metrics.jsonl.
        patience: stop after this many evaluations without a better MAP@R; null never stops early.
        clip_norm: largest norm of the gradient of all parameters together; null does not clip.
        precision: of the model's forward pass; losses are always computed in float32.
        device: "auto" takes the GPU when there is one.
        workers: processes that read and augment images; 0 reads in the main process.
        ks: the K of Recall@K in validation, 1 among them; null: those of the data set.

    Raises:
        InputError: a setting is out of its range.
    """

    steps: int = 1000
    evaluate_every: int = 200
    checkpoint_every: int = 200
    log_every: int = 10
    patience: int | None = None
    clip_norm: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    workers: int = 0
    ks: list[int] | None = None

    def __post_init__(self) -> None:
        for name, least, cure in (
            ("steps", 0, "0 leaves the model untrained"),
            ("evaluate_every", 1, "for the start and the end alone, give as many as `training.steps`"),
            ("checkpoint_every", 1, "for one at each evaluation alone, give as many as `training.steps`"),
            ("log_every", 1, "the more, the fewer lines"),
            ("patience", 1, "null never stops early"),
            ("workers", 0, "0 reads in the main process"),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(
                    f"`training.{name}` is {value}; expected a whole number from {least} ({cure})."
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(
                f"`training.clip_norm` is {self.clip_norm}; expected a number above 0, or null to leave gradients as "
                "they are."
            )
        if self.ks is not None and (1 not in self.ks or min(self.ks) < 1):
            raise InputError(
                f"`training.ks` is {self.ks}; expected whole numbers from 1, 1 among them: training shows Recall@1."
            )


@dataclass
class Published:
    """What a paper reports for a system, for ``deepmetric evaluate`` to print beside a run's own figures.

    Args:
        data: the data set, as ``Dataset.name`` says it where the whole of it is there.
        model: backbone and width of the embedding; figures of other models do not compare.
        source: the paper, and its table where that is known.
        scores: metric, as ``deepmetric evaluate`` names it -> per cent.
    """

    data: str
    model: str
    source: str
    scores: dict[str, float]


@dataclass
class Recipe:
    """A training run, named part by part.

    Every part is a factory: a recipe in YAML names its class (``class_path``) and arguments (``init_args``), a
    program may pass any callable. Nothing is built before the trainer calls it.

    Args:
        data: the labelled items, all splits.
        model: what turns images into embeddings.
        loss: ``loss(embeddings, labels) -> scalar``, labels numbered from 0 within the training split. A loss, or a
            module in it, with a method ``set_classes(num_classes, dim)`` is told the number of training classes and the
            width of the embedding before the first batch, so a recipe need not name them.
        sampler: batches of the training items, made from their labels.
        optimizer: made from the parameter groups.
        schedule: of the learning rate; made from the optimiser and the number of steps.
        memory: wraps the loss; made from the loss and the width of the embedding.
        procedure: what training does beside taking steps, for systems that are more than a loss.
        augmentation: training transforms in this order, torchvision v2 on uint8 images; null takes the model's own
            preprocessing.
        learning_rates: where parts differ from the optimiser's learning rate.
        training: settings of the loop.
        published: figures of the system's paper.
        seed: of the initial weights, the batches and the augmentation.
    """

    data: Callable[[], Dataset]
    model: Callable[[], EmbeddingModel]
    loss: Callable[[], nn.Module]
    sampler: Callable[[np.ndarray], PlannedSampler]
    optimizer: Callable[[list], Optimizer]
    schedule: Callable[[Optimizer, int], Schedule]
    memory: Callable[[nn.Module, int], CrossBatchMemory] | None = None
    procedure: Callable[[], Procedure] | None = None
    augmentation: list[Callable[[], nn.Module]] | None = None
    learning_rates: LearningRates = field(default_factory=LearningRates)
    training: Loop = field(default_factory=Loop)
    published: list[Published] = field(default_factory=list)
    seed: int = 0

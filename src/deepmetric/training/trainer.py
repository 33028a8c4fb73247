"""The training loop: batches -> embeddings -> loss -> step, with evaluation, checkpoints and resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from deepmetric.data import Dataset, HierarchicalSampler, PlannedSampler, make_loader, numbered
from deepmetric.device import best_device
from deepmetric.errors import InputError
from deepmetric.evaluation import evaluate_model
from deepmetric.losses import set_classes
from deepmetric.models import EmbeddingModel
from deepmetric.training.checkpoint import load_checkpoint, save_checkpoint
from deepmetric.training.guards import CollapseWatch, check_scalar
from deepmetric.training.log import MetricsLog, NoLog, progress_bar
from deepmetric.training.optim import parameter_groups
from deepmetric.training.procedure import Procedure
from deepmetric.training.processes import Team
from deepmetric.training.recipe import Recipe
from deepmetric.training.run import Run, initial_model
from deepmetric.training.shares import WholeState, clip_gradients

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Builds the parts of a recipe and runs them.

    Args:
        recipe: what to train.
        run: the folder to write to.

    Raises:
        InputError: for a recipe that cannot be trained (no training items, classes shared between training and
            validation).

    Under torchrun each process builds a trainer and calls :meth:`train`. Batches are those of one process, dealt
    out; the loss is that of the whole batch, with one memory (and class weights of a ``sharded`` loss) shared out;
    gradients are averaged. A procedure acts in every process. The first process evaluates and writes. The run is that
    of one process but for rounding, dropout and batch normalisation, which takes the statistics of each process's
    part; and it may be resumed with another number of processes.
    """

    def __init__(self, recipe: Recipe, run: Run):
        self.team = Team()
        self.recipe, self.run, self.loop = recipe, run, recipe.training
        self.device = self.team.device(_device(self.loop.device))
        self.data = data = recipe.data()
        self.model = initial_model(recipe).to(self.device).train()
        self.train_data = _train_split(data, recipe, self.model)
        self.validation = _validation_split(data)
        self.skipped = data.skipped
        self.description = data.describe()
        loss = recipe.loss()
        set_classes(loss, len(self.train_data.classes), self.model.embedding_dim)
        self.loss: nn.Module = recipe.memory(loss, self.model.embedding_dim) if recipe.memory else loss
        self.loss.to(self.device).train()
        self.team.share_loss(self.loss)
        part = {"rank": self.team.rank, "world_size": self.team.size} if self.team.size > 1 else {}
        self.sampler: PlannedSampler = recipe.sampler(self.train_data.labels, seed=recipe.seed, **part)  # type: ignore[call-arg]
        if isinstance(self.sampler, HierarchicalSampler):
            self.sampler.categories = self.train_data.categories
        self.optimizer = recipe.optimizer(parameter_groups(self.model, self.loss, recipe.learning_rates))
        self.schedule = recipe.schedule(self.optimizer, self.loop.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.loop.precision == "fp16")
        self.watch = CollapseWatch()
        self.unchecked: tuple[Tensor, int, list[str]] | None = None
        self.procedure = recipe.procedure() if recipe.procedure else Procedure()
        self.step = 0
        self.best = -math.inf
        self.stale = 0  # evaluations since the best one
        self.finished = False
        # Called with the scores of each evaluation on the validation classes, once the checkpoint is written.
        self.on_evaluation: Callable[[dict[str, float]], None] | None = None
        self.procedure.setup(self)

    # ---- state ----

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "loss": self.loss,
            "optimizer": WholeState(self.optimizer, self.loss),
            "schedule": self.schedule,
            "scaler": self.scaler,
            "procedure": self.procedure,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "sampler": self._sampler_state(),
            "progress": {
                "step": self.step,
                "best": self.best,
                "stale": self.stale,
                "finished": self.finished,
                "collapse_looks": self.watch.seen,
            },
            "random": self.team.random_state(self.device),
        }

    def _sampler_state(self) -> dict[str, int]:
        """Where the batch of the next step comes from. What workers have read ahead does not count: the step does."""
        epoch, position = divmod(self.step, len(self.sampler))
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` was taken."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        progress = state["progress"]
        self.step, self.best, self.stale = progress["step"], progress["best"], progress["stale"]
        self.finished = progress["finished"]
        self.watch.seen = progress["collapse_looks"]
        self.team.set_random_state(state["random"], self.device)

    # ---- the loop ----

    def train(self, resume: bool = False) -> None:
        """Train to the end, or from the last checkpoint to the end with ``resume``.

        Raises:
            InputError: to resume with other data than the run was begun with; no checkpoint, or one that cannot be
                read; a loss, an embedding or a gradient that is no number; a loss that gives no scalar; validation
                classes of one item each.
        """
        if self.team.rank:
            torch.manual_seed(self.recipe.seed + self.team.rank)  # dropout of its own
        if resume:
            changed = self.run.changed_data(self.data)
            if changed:
                raise InputError(f"{changed}. Put them back as they were, or start a new run.")
            self.load_state_dict(load_checkpoint(self.run.last_checkpoint))
        else:
            self.procedure.begin()
            if self.team.first:
                self.run.record_data(self.data)
        if self.skipped and self.team.first:
            (self.run.folder / "skipped.txt").write_text("\n".join(self.skipped) + "\n", encoding="utf8")
        self.parallel = self.team.share_model(self.model)
        self.log = (
            MetricsLog(self.run.metrics_file, self.run.folder / "tensorboard", self.step if resume else -1)
            if self.team.first
            else NoLog()
        )
        bar = progress_bar(self.loop.steps, self.step, shown=self.team.first)
        try:
            if not resume:
                self._evaluate(bar)
            self._steps(bar)
        finally:
            bar.close()
            self.log.close()

    def _batches(self) -> Iterator[Any]:
        """The batches of the remaining steps, with a loader of its own for each stretch between two refreshes."""
        every = self.procedure.refresh_every or self.loop.steps
        while self.step < self.loop.steps:
            passed = self.step % every
            if self.procedure.refresh_every and not passed:
                self._check_gradient()
                self.team.refresh(self.procedure, self.model)
            # The loop counts the step before it asks for the next batch.
            yield from self._dealt(min(every - passed, self.loop.steps - self.step))

    def _dealt(self, steps: int) -> Iterator[Any]:
        """The batches of the next ``steps`` steps."""
        self.sampler.load_state_dict(self._sampler_state())
        # The sampler goes on to the next epoch by itself each time it is iterated.
        batches = islice(chain.from_iterable(repeat(self.sampler)), steps)
        return iter(
            make_loader(
                self.train_data,
                batch_sampler=numbered(
                    batches, self.step * self.sampler.batch_size, self.sampler.places, self.sampler.batch_size
                ),
                workers=self.loop.workers,
                seed=self.recipe.seed,
            )
        )

    def _steps(self, bar: tqdm) -> None:
        if self.finished:
            return
        since, items = time.perf_counter(), 0
        for images, labels, indices in self._batches():
            self.step += 1
            embeddings, loss = self._one_step(images, labels, indices)
            bar.update()
            items += len(images) * self.team.size
            if self.step % self.loop.log_every == 0 or self.step == 1:
                elapsed = time.perf_counter() - since
                self._log_step(loss, embeddings, bar)
                self.log.speed(items / max(elapsed, 1e-9), self.step)
                since, items = time.perf_counter(), 0
            self.schedule.step()  # the rates of the step were logged; a checkpoint holds the next one's
            last = self.step == self.loop.steps
            if self.step % self.loop.evaluate_every == 0 or last:
                self._evaluate(bar)
                since, items = time.perf_counter(), 0
                if self.finished:
                    return
            elif self.step % self.loop.checkpoint_every == 0:
                self._save()

    def _one_step(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        half = _AUTOCAST.get(self.loop.precision)
        with torch.autocast(self.device.type, dtype=half, enabled=half is not None):
            embeddings = self.parallel(images)
        # Losses in float32 whatever the model's precision: exp(25) overflows half precision.
        embeddings = embeddings.float()
        loss = self.loss(embeddings, labels)
        check_scalar(loss, type(self.loss).__name__)
        ids = [self.train_data.ids[i] for i in indices.tolist()]
        self._check_gradient()
        self.team.check_finite(loss, embeddings, self.step, ids)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.team.average_gradients(self.loss)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.optimizer, self.loss, self.loop.clip_norm or math.inf)
        if not self.scaler.is_enabled():  # which leaves out a step whose gradient overflows
            self.unchecked = norm, self.step, ids
        self.scaler.step(self.optimizer)
        self.scaler.update()
        embeddings, loss = embeddings.detach(), loss.detach()
        if self.recipe.procedure:
            self.procedure.after_step(*self.team.whole_batch(embeddings, labels, indices), loss)
        return embeddings, loss

    def _check_gradient(self) -> None:
        """See that the last step's gradient was finite: before anything of it is kept, but not before a GPU has to be
        waited for anyway."""
        if self.unchecked is not None:
            self.team.check_gradient(*self.unchecked)
            self.unchecked = None

    def _log_step(self, loss: Tensor, embeddings: Tensor, bar: tqdm) -> None:
        record: dict[str, Any] = {"step": self.step, "loss": float(loss), **self.procedure.metrics()}
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr()):
            record[f"lr_{group['name']}"] = rate
        self.log.write(record, "train")
        shown = {"loss": f"{record['loss']:.4f}"}
        if self.validation is not None:
            shown["best"] = f"{self.best:.3f}"
        bar.set_postfix(shown, refresh=False)
        warning = self.watch.look(embeddings, self.step)
        if warning:
            self._say(bar, f"warning: {warning}")
            self.log.write({"step": self.step, "warning": warning}, "train")

    # ---- evaluation and checkpoints ----

    def _evaluate(self, bar: tqdm) -> None:
        """Measure on the validation classes, keep the best model, write the checkpoints."""
        self._check_gradient()
        improved = True  # without validation classes the last model is the one to keep
        scores = None
        if self.validation is not None:
            scores = self._scores(self.validation) if self.team.first else {}
            scores = self.team.from_first(scores)
            self.log.write({"step": self.step, "split": "val", **scores}, "val")
            self._say(
                bar,
                f"step {self.step}: validation Recall@1 {scores['recall@1']:.4f}, MAP@R {scores['map@r']:.4f}"
                f"{' (untrained)' if self.step == 0 else ''}",
            )
            score = scores["map@r"]
            if math.isnan(score):
                raise InputError(
                    "no validation item has another one of its class to find, so no model is better than another. Give "
                    "the validation classes two items or more each, or leave the validation split out."
                )
            improved = score > self.best
            if self.step:
                self.schedule.on_score(score)
            self.stale = 0 if improved else self.stale + 1
            self.best = max(self.best, score)
        impatient = self.loop.patience is not None and self.stale >= self.loop.patience
        self.finished = self.step == self.loop.steps or impatient
        self._save(best=improved)
        if impatient:
            self._say(bar, f"stopped at step {self.step}: {self.stale} evaluations without a better MAP@R")
        if scores is not None and self.on_evaluation is not None:
            self.on_evaluation(scores)

    def _scores(self, validation: Dataset) -> dict[str, float]:
        scores = evaluate_model(
            self.model, validation, ks=self.loop.ks, workers=self.loop.workers, device=str(self.device)
        )
        self.model.train()
        return scores

    def _say(self, bar: tqdm, text: str) -> None:
        if self.team.first:
            bar.write(text)

    def _save(self, best: bool = False) -> None:
        self._check_gradient()
        self.log.sync()
        state = self.state_dict()  # by all processes: what is shared out is joined
        if not self.team.first:
            return
        if best:
            save_checkpoint(self.run.best_checkpoint, state)
            self.model.save_pretrained(self.run.model_folder)
        # Last: a kill in between leaves an older `last`, from which the rest is made again.
        save_checkpoint(self.run.last_checkpoint, state)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = best_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"`training.device` {name!r} cannot be used here: {error}") from error
    return device


def _train_split(data: Dataset, recipe: Recipe, model: EmbeddingModel) -> Dataset:
    train = data.split("train").with_classes_renumbered()
    if recipe.augmentation is None:
        return train.with_transform(model.preprocessing.transform())
    return train.with_transform(v2.Compose([make() for make in recipe.augmentation]))


def _validation_split(data: Dataset) -> Dataset | None:
    """The validation items, or None. Refuses classes that training sees too: the score would be another thing."""
    if "val" not in data.splits:
        return None
    shared = data.shared_classes().get(("train", "val"))
    if shared:
        raise InputError(
            f"training and validation share {len(shared)} classes ({', '.join(shared[:5])} ...): validation must be on "
            f"classes that training never sees. Mend the splits, or leave the validation split out and let "
            f"`data.split` deal one."
        )
    return data.split("val")

"""Search for a system's settings: the mean over the folds of the best validation MAP@R, never a test class.

OUT/DATA/SYSTEM.yaml             the best values so far, a recipe to go over the system's own
OUT/DATA/SYSTEM/journal.log      the study: Optuna's journal storage
OUT/DATA/SYSTEM/trials.csv       every trial, its values and its score
OUT/DATA/SYSTEM/trial-0/fold-0/  recipe and metrics of a trial's run on a fold
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from deepmetric.atomic import write_text
from deepmetric.benchmark.cells import claim
from deepmetric.benchmark.plan import Entry, Plan
from deepmetric.benchmark.resolve import changes, of_cell, resolved
from deepmetric.benchmark.search_space import as_recipe, distributions, example
from deepmetric.benchmark.tables import as_csv
from deepmetric.benchmark.workers import WAIT, in_processes
from deepmetric.errors import InputError
from deepmetric.training.guards import NonFiniteLossError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

    from deepmetric.benchmark.open_data import OpenData
    from deepmetric.training import Trainer


@dataclass(frozen=True)
class Job:
    """One study: a system on a data set."""

    plan: Plan
    data: Entry
    system: Entry
    folder: Path

    def __str__(self) -> str:
        return f"{self.data.name} {self.system.name}"


def tune(
    plan: Plan, out: Path, workers: int = 1, data: Sequence[str] = (), systems: Sequence[str] = ()
) -> list[Job]:
    """Search for every system of ``plan`` that has a ``search``, on every data set, ``plan.tune.trials`` trials each.

    Like :func:`run_benchmark` it goes on with what is in ``out``, and any number of processes share the trials. A trial
    whose worker died is taken up where its last checkpoint was. With one worker the result does not depend on how
    often it was stopped.

    Args:
        data, systems: only these; empty: all.

    Returns:
        the studies, each with its best values in ``folder.with_suffix(".yaml")``.

    Raises:
        InputError: one fold, which has no validation classes; no system has a search, a key that the recipe does not
            take, a range that is none, a data set that cannot be opened or has too few classes, a study begun with
            other settings or other items, Optuna missing.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError("`deepmetric tune` needs Optuna: pip install 'deepmetric[tune]'.") from error
    if plan.folds < 2:
        raise InputError(
            "one fold has no validation classes to tune on: set `folds` to 2 or more. (The values found may be used "
            "in a benchmark of one fold.)"
        )
    jobs = [
        Job(plan, one, system, out / one.name / system.name)
        for one in plan.data
        for system in plan.systems
        if system.search and (not data or one.name in data) and (not systems or system.name in systems)
    ]
    if not jobs:
        raise InputError(
            "there is nothing to tune: no system chosen has `search`, a mapping of dotted recipe keys to "
            "{low, high, log} or {choices}."
        )
    from deepmetric.benchmark.open_data import OpenData

    settings = [_settings(job) for job in jobs]
    opened = OpenData()
    # Before a study is written: one begun with wrong folds would refuse the right ones.
    left = [(job, now["recipe"]) for job, now in zip(jobs, settings) if not _is_done(job)]
    opened.check([(job.data.name, recipe) for job, recipe in left], plan.folds, ("val",))
    for job, recipe in left:
        opened.refuse_changed(
            _trial_folder(job, 0) / "fold-0", of_cell(recipe, 0, plan.folds, plan.tune.seed)
        )
    for job, now in zip(jobs, settings):
        _begin(job, now)
    in_processes(workers, _work, jobs, opened)
    for job in jobs:
        with FileLock(job.folder / "study.lock"):
            _write_best(job, _study(job))
    return jobs


def _settings(job: Job) -> dict[str, Any]:
    """What makes the study what it is; sees that the recipe takes every key."""
    space = distributions(job.system.search, job.system.name)
    chosen = {key: example(distribution) for key, distribution in space.items()}
    recipe = resolved(job.plan, job.data, job.system, chosen=chosen)
    as_recipe(chosen, recipe)
    return {
        "recipe": resolved(job.plan, job.data, job.system),
        "search": {key: repr(distribution) for key, distribution in space.items()},
        "folds": job.plan.folds,
        "pruner": job.plan.tune.pruner,
        "seed": job.plan.tune.seed,
    }


def _begin(job: Job, now: dict[str, Any]) -> None:
    """Note the study's settings or see that it was begun with the same."""
    job.folder.mkdir(parents=True, exist_ok=True)
    file = job.folder / "study.json"
    with FileLock(job.folder / "study.lock"):
        if not file.is_file():
            write_text(file, json.dumps(now, indent=1))
        elif found := changes(json.loads(file.read_text(encoding="utf8")), json.loads(json.dumps(now))):
            raise InputError(
                f"the study in {job.folder} was begun with other settings: "
                + "; ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in found[:5])
                + ". Set them back, or name another --out."
            )


def _study(job: Job) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    logging.getLogger("optuna").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tuning = job.plan.tune
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if tuning.pruner == "median":
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
    elif tuning.pruner == "hyperband":
        training = resolved(job.plan, job.data, job.system)["training"]
        last = job.plan.folds * _evaluations(training)
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=last)
    file = job.folder / "journal.log"
    return optuna.create_study(
        # its base class for locks is private, but acquire and release are all it asks for
        storage=JournalStorage(JournalFileBackend(str(file), lock_obj=_JournalLock(file))),  # pyright: ignore[reportArgumentType]
        study_name="study",
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )


class _JournalLock:
    """Optuna's own lock is a file that a killed process leaves behind; this one ends with its process."""

    def __init__(self, file: Path) -> None:
        self._lock = FileLock(f"{file}.flock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _work(jobs: list[Job], opened: OpenData) -> None:
    """Do trials until every study has all of its own finished, by this worker or another."""
    studies = [(job, _study(job)) for job in jobs]
    while studies:
        studies = [(job, study) for job, study in studies if not _all_finished(job, study)]
        took = False
        for job, study in studies:
            while _one_trial(job, study, opened):
                took = True
        if studies and not took:
            time.sleep(WAIT)


def _is_done(job: Job) -> bool:
    return (job.folder / "journal.log").is_file() and _all_finished(job, _study(job))


def _all_finished(job: Job, study: Study) -> bool:
    return (
        sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)) >= job.plan.tune.trials
    )


def _one_trial(job: Job, study: Study, opened: OpenData) -> bool:
    """Take a trial whose worker died, or a new one, and do it; False when there is none to take."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    with ExitStack() as held:
        with FileLock(job.folder / "study.lock"):
            trial = _take(job, study, held)
        if trial is None:
            return False
        began = time.perf_counter()
        try:
            score = _score(job, trial, opened)
        except TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            said = "pruned"
        except NonFiniteLossError as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
            said = f"failed: {error}"
        else:
            study.tell(trial, score)
            said = f"MAP@R {score:.4f}"
        with FileLock(job.folder / "study.lock"):
            _write_best(job, study)
    values = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in trial.params.items()
    )
    print(
        f"{job} trial {trial.number} of {job.plan.tune.trials}: {said} ({values}), {time.perf_counter() - began:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return True


def _take(job: Job, study: Study, held: ExitStack) -> Trial | None:
    """With the study's lock held: a trial that is this worker's until ``held`` is closed."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    trial, trials = None, study.get_trials(deepcopy=False)
    for frozen in trials:
        if frozen.state == TrialState.RUNNING and held.enter_context(
            claim(_trial_folder(job, frozen.number))
        ):
            trial = Trial(study, frozen._trial_id)
            break
    if trial is None and len(trials) >= job.plan.tune.trials:
        return None
    number = len(trials) if trial is None else trial.number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # A sampler's random state is in no storage: one for each trial makes the search repeatable.
        study.sampler = TPESampler(seed=job.plan.tune.seed * 100_003 + number, constant_liar=True)
        if trial is None:
            trial = study.ask()
            held.enter_context(claim(_trial_folder(job, trial.number)))
        for key, distribution in distributions(job.system.search, job.system.name).items():
            trial._suggest(key, distribution)
    return trial


def _score(job: Job, trial: Trial, opened: OpenData) -> float:
    """Mean over folds of the best validation MAP@R; reports the mean so far at each evaluation, for the pruner."""
    from optuna import TrialPruned

    from deepmetric.benchmark.run_cell import train_fold

    recipe = resolved(job.plan, job.data, job.system, chosen=trial.params)
    evaluations = _evaluations(recipe["training"])
    done: list[float] = []

    def watch(trainer: Trainer, _: dict[str, float]) -> None:
        if trainer.step == 0:
            return
        step = len(done) * evaluations + math.ceil(trainer.step / trainer.loop.evaluate_every)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*already reported.*")  # before this worker took over
            trial.report((sum(done) + trainer.best) / (len(done) + 1), step)
        if trial.should_prune():
            raise TrialPruned

    for fold in range(job.plan.folds):
        folder = _trial_folder(job, trial.number) / f"fold-{fold}"
        file = folder / "validation.json"
        try:
            if not file.is_file():
                written = of_cell(recipe, fold, job.plan.folds, job.plan.tune.seed)
                write_text(file, json.dumps(train_fold(folder, written, opened, watch).best))
        except (TrialPruned, NonFiniteLossError):
            _tidy(folder)
            raise
        _tidy(folder)
        done.append(json.loads(file.read_text(encoding="utf8"))["map@r"])
    return sum(done) / len(done)


def _tidy(folder: Path) -> None:
    """Weights of a fold that is done are of no more use."""
    for name in ("checkpoints", "model", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _write_best(job: Job, study: Study) -> None:
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    records = [
        {"trial": one.number, "state": one.state.name.lower(), "map@r": one.value, **one.params}
        for one in trials
    ]
    write_text(job.folder / "trials.csv", as_csv(records))
    complete = [one for one in trials if one.state == TrialState.COMPLETE and one.value is not None]
    if not complete:
        return
    best = max(complete, key=lambda one: one.value or 0.0)
    recipe = as_recipe(best.params, resolved(job.plan, job.data, job.system, chosen=best.params))
    write_text(
        best_file(job),
        f"# {job.system.name} on {job.data.name}: trial {best.number} of {len(trials)}, validation MAP@R "
        f"{best.value:.4f}, mean of {job.plan.folds} folds.\n{yaml.safe_dump(recipe, sort_keys=False)}",
    )


def best_file(job: Job) -> Path:
    """Where the best values are written."""
    return job.folder.parent / f"{job.folder.name}.yaml"


def _trial_folder(job: Job, number: int) -> Path:
    return job.folder / f"trial-{number}"


def _evaluations(training: dict[str, Any]) -> int:
    return max(1, math.ceil(training["steps"] / training["evaluate_every"]))

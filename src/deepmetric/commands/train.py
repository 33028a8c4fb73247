"""``deepmetric train``: train what a recipe says, or resume a run."""

from __future__ import annotations

import sys
from pathlib import Path

from deepmetric.errors import InputError

HELP = "learn an embedding from labelled items, as a recipe says; resume a run"

_USAGE = """deepmetric train RECIPE [RECIPE ...] [--run FOLDER] [--dotted.key value ...]
       deepmetric train --resume RUN
       torchrun --nproc-per-node N -m deepmetric.cli -- train ...    (N processes; -- keeps torchrun off --run)

RECIPE is a YAML file or the name of a recipe that comes with deepmetric (`deepmetric recipes`); of several, later
ones win: one names the data, another the system. Any key can be set after them, for example
--training.steps 500 or --data.root my_images. --print_config shows the resolved recipe."""


def main(argv: list[str]) -> int:
    resume, argv = _take(argv, "--resume")
    folder, argv = _take(argv, "--run")
    from deepmetric.training.processes import under_torchrun

    if resume is not None:
        if argv or folder is not None:
            raise InputError(
                f"--resume continues a run with its own recipe and takes nothing else, got "
                f"{' '.join(argv) or '--run ' + str(folder)}. To change a setting, start a new run."
            )
        with under_torchrun():
            return _resume(Path(resume))
    with under_torchrun():
        return _start(argv, folder)


def _start(argv: list[str], folder: str | None) -> int:
    from deepmetric.atomic import write_text
    from deepmetric.recipes import find_recipe
    from deepmetric.training.parse import dump_recipe, parse_recipe, recipe_parser

    recipes = []
    while argv and not argv[0].startswith("-"):
        recipes.append(argv[0])
        argv = argv[1:]
    configs = [word for name in recipes for word in ("--config", str(find_recipe(name)))]
    parser = recipe_parser(prog="deepmetric train", usage=_USAGE, description=HELP)
    recipe, values = parse_recipe([*configs, *argv], parser)

    from deepmetric.training.processes import Team
    from deepmetric.training.run import Run
    from deepmetric.training.trainer import Trainer

    team = Team()
    run = Run(team.from_first(_new_folder(folder, recipes) if team.first else None))
    trainer = Trainer(recipe, run)
    if team.first:
        # Whole or not at all: it is what `--resume` reads.
        write_text(run.recipe_file, dump_recipe(parser, values))
        print(f"{trainer.description}\nrun: {run.folder}", file=sys.stderr)
    return _train(trainer)


def _resume(folder: Path) -> int:
    from deepmetric.training.run import load_run
    from deepmetric.training.trainer import Trainer

    run = load_run(folder)
    trainer = Trainer(run.recipe, run)
    if trainer.team.first:
        print(f"{trainer.description}\nresumes: {run.folder}", file=sys.stderr)
    # Killed before its first checkpoint, it has lost nothing: the recipe is there.
    return _train(trainer, resume=run.last_checkpoint.is_file())


def _train(trainer, resume: bool = False) -> int:
    try:
        trainer.train(resume=resume)
    except KeyboardInterrupt:
        if trainer.team.first:
            print(f"interrupted; go on with: deepmetric train --resume {trainer.run.folder}", file=sys.stderr)
        return 130
    return _report(trainer)


def _report(trainer) -> int:
    if not trainer.team.first:
        return 0
    lines = [record for record in trainer.run.metrics() if record.get("split") == "val"]
    if lines:
        best = max(lines, key=lambda record: record["map@r"])
        print("validation classes   untrained   best")
        for key in ("recall@1", "r_precision", "map@r"):
            print(f"{key:<18} {lines[0][key]:>11.4f} {best[key]:>6.4f}")
        print(f"best at step {best['step']} of {trainer.step}")
    print(f"model: {trainer.run.model_folder}")
    return 0


def _new_folder(name: str | None, recipes: list[str]) -> Path:
    """The run's folder: as named, which must be empty, or the first free one under runs/."""
    if name is not None:
        folder = Path(name)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} is there already and not empty. Continue it with `deepmetric train --resume {folder}`, or "
                f"name another folder with --run."
            )
        return folder
    stem = "-".join(Path(recipe).stem for recipe in recipes) or "run"
    candidates = (Path("runs") / (stem if n == 1 else f"{stem}-{n}") for n in range(1, 10**6))
    return next(folder for folder in candidates if not folder.exists())


def _take(argv: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of ``--option value`` or ``--option=value``, and the arguments without it."""
    for i, word in enumerate(argv):
        if word == option:
            if i + 1 == len(argv):
                raise InputError(f"{option} needs a folder after it.")
            return argv[i + 1], argv[:i] + argv[i + 2 :]
        if word.startswith(option + "="):
            return word[len(option) + 1 :], argv[:i] + argv[i + 1 :]
    return None, argv

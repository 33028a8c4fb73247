"""``deepmetric tune``: a search for the settings of systems on validation classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deepmetric.commands.benchmark import add_plan_options, plan_roots
from deepmetric.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jsonargparse import ArgumentParser, Namespace

HELP = (
    "search for a system's settings by the mean validation MAP@R of a benchmark's folds, never its test classes. "
    "Stopped at any moment, the same command goes on; several at once on one --out share the trials."
)


def configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "benchmark",
        metavar="BENCH.yaml",
        help="as of `deepmetric benchmark`; systems with `search` are tuned, `tune` says how",
    )
    add_plan_options(parser)
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME", help="only on these data sets of BENCH.yaml"
    )
    parser.add_argument(
        "--systems", nargs="+", default=[], metavar="NAME", help="only these systems of BENCH.yaml"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="over tune.trials of BENCH.yaml")


def run(args: Namespace) -> int:
    from dataclasses import replace

    from deepmetric.benchmark.plan import read_plan
    from deepmetric.benchmark.tune import best_file, tune

    if args.out is None:
        raise InputError(
            "give --out OUT, the folder of the search; the same command goes on with what is there."
        )
    plan = read_plan(args.benchmark, plan_roots(args))
    _check_names("--data", args.data, [entry.name for entry in plan.data])
    _check_names("--systems", args.systems, [entry.name for entry in plan.systems])
    if args.trials is not None:
        if args.trials < 1:
            raise InputError(f"--trials is {args.trials}; expected at least 1.")
        plan = replace(plan, tune=replace(plan.tune, trials=args.trials))
    for job in tune(plan, Path(args.out), args.workers, args.data, args.systems):
        file = best_file(job)
        print(
            f"{file}\n{file.read_text(encoding='utf8')}"
            if file.is_file()
            else f"{job}: no trial came to its end"
        )
    print(f"take these values: deepmetric benchmark {args.benchmark} --tuned {args.out} --out ...")
    return 0


def _check_names(option: str, given: Sequence[str], there: Sequence[str]) -> None:
    for name in given:
        if name not in there:
            raise InputError(
                f"{option}: there is no {name!r}, only {', '.join(there)}.{did_you_mean(name, there)}"
            )

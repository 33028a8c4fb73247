"""``deepmetric benchmark``: systems compared by class-disjoint cross-validation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deepmetric.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = (
    "compare systems fairly: class-disjoint cross-validation, several seeds, intervals, tests. "
    "Stopped at any moment, the same command goes on; several at once on one --out share the work."
)


def configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "benchmark",
        nargs="?",
        metavar="BENCH.yaml",
        help="systems, data sets, folds, seeds and common settings; see benchmarks/reality_check.yaml",
    )
    add_plan_options(parser)
    parser.add_argument(
        "--tuned", metavar="FOLDER", help="the --out of `deepmetric tune`: take its best values"
    )
    parser.add_argument("--report", metavar="OUT", help="only write the report of what is finished in OUT")
    parser.add_argument(
        "--page", metavar="FILE.md", help="write the report there too, with its figures beside it"
    )


def add_plan_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="OUT", help="folder of the results; goes on with what is there")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that share the work on this machine"
    )
    parser.add_argument(
        "--root",
        nargs="+",
        default=[],
        metavar="DATA=PATH",
        help="where the files of a data set are, over data.root of its recipe",
    )


def plan_roots(args: Namespace) -> dict[str, str]:
    """--root as a mapping; checks --workers too."""
    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}; expected at least 1.")
    for given in args.root:
        if "=" not in given:
            raise InputError(f"--root takes DATA=PATH, got {given!r}.")
    return dict(given.split("=", 1) for given in args.root)


def run(args: Namespace) -> int:
    from deepmetric.benchmark.benchmark import run_benchmark
    from deepmetric.benchmark.plan import read_plan
    from deepmetric.benchmark.report import progress, write_report

    if args.report is not None:
        if args.benchmark is not None or args.out is not None:
            raise InputError(
                "--report only writes the report of a folder: give neither BENCH.yaml nor --out."
            )
        out, failed = Path(args.report), []
    else:
        if args.benchmark is None or args.out is None:
            raise InputError("give BENCH.yaml and --out OUT, or --report OUT.")
        out = Path(args.out)
        plan = read_plan(args.benchmark, plan_roots(args))
        failed = run_benchmark(plan, out, args.workers, None if args.tuned is None else Path(args.tuned))
    results = write_report(out, None if args.page is None else Path(args.page))
    print(progress(results))
    print(f"report: {out / 'report' / 'report.md'}")
    if failed:
        print(f"{len(failed)} cells failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0

"""Train shipped recipes with several seeds, evaluate on the test classes, print a table.

    python benchmarks/recipes.py data/omniglot systems/multi_similarity systems/triplet_semihard \\
        --root omniglot.zip --seeds 0 1 2 -o runs/results

Each pair of the data recipe and a system recipe is one line: the untrained model, then the trained one, mean over
seeds with the smallest and largest. A run that is there already is resumed or, if finished, only evaluated.
Options after ``--`` go to every ``deepmetric train``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

METRICS = ("recall@1", "r_precision", "map@r")
COMMAND = [sys.executable, "-m", "deepmetric.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a data recipe")
    parser.add_argument("systems", nargs="+", help="system recipes; `a+b` combines several files")
    parser.add_argument("--root", help="the data's folder, zip or table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/results"))
    known = sys.argv[1:]
    extra = known[known.index("--") + 1 :] if "--" in known else []
    args = parser.parse_args(known[: known.index("--")] if "--" in known else known)

    print(f"| {args.data} | seeds | " + " | ".join(f"{m}, untrained | {m}" for m in METRICS) + " |")
    print("|---|---|" + "---|---|" * len(METRICS))
    for system in args.systems:
        scores = [scores_of(args, system, seed, extra) for seed in args.seeds]
        cells = [
            f"{mean(before[m] for before, _ in scores):.3f} | {_spread([after[m] for _, after in scores])}"
            for m in METRICS
        ]
        print(f"| {system} | {len(args.seeds)} | " + " | ".join(cells) + " |", flush=True)


def scores_of(args: argparse.Namespace, system: str, seed: int, extra: list[str]) -> tuple[dict, dict]:
    """Test metrics of one run before and after training; trains it first if need be."""
    name = f"{Path(args.data).stem}-{'-'.join(Path(part).stem for part in system.split('+'))}-{seed}"
    run, result = args.output / name, args.output / f"{name}.json"
    if not result.exists():
        if (run / "checkpoints" / "last.pt").exists():
            _do("train", "--resume", run)
        else:
            root = ["--data.root", args.root] if args.root else []
            _do("train", args.data, *system.split("+"), "--run", run, *root, "--seed", seed, *extra)
        result.write_text(_do("evaluate", run, "--untrained", "--json"), encoding="utf8")
    both = json.loads(result.read_text(encoding="utf8"))
    return both["untrained"], both


def _do(*arguments: object) -> str:
    done = subprocess.run([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main()

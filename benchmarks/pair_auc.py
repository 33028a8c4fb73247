"""How likely a positive pair of test items is more similar than a negative one, by system of a benchmark that was run.

    python benchmarks/pair_auc.py runs/systems omniglot contrastive histogram

What the histogram loss optimises, beside what MAP@R says of the same embeddings (docs/results.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize


def pair_auc(embeddings: np.ndarray, labels: np.ndarray, sample: int = 4000) -> float:
    """Area under the ROC curve of the cosines of all pairs among up to ``sample`` items, those of the first classes."""
    chosen = np.argsort(labels, kind="stable")[:sample]
    rows = normalize(torch.from_numpy(embeddings[chosen]).float()).numpy()
    first, second = np.triu_indices(len(rows), 1)
    same = labels[chosen][first] == labels[chosen][second]
    return float(roc_auc_score(same, (rows @ rows.T)[first, second]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the benchmark")
    parser.add_argument("data")
    parser.add_argument("systems", nargs="+")
    arguments = parser.parse_args()
    labels = np.load(arguments.out / "data" / f"{arguments.data}.npz")["labels"]
    for system in arguments.systems:
        files = sorted((arguments.out / "cells" / arguments.data / system).glob("*/test_embeddings.npy"))
        if not files:
            parser.error(f"{arguments.out} has no finished model of {system} on {arguments.data}")
        areas = [pair_auc(np.load(file), labels) for file in files]
        print(f"{system:24}{np.mean(areas):8.4f}  ({min(areas):.4f} - {max(areas):.4f}, {len(areas)} models)")


if __name__ == "__main__":
    main()

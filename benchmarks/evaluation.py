"""Times the retrieval metrics against a FAISS flat search for the same neighbours, in one run, with peak memory.

    python benchmarks/evaluation.py                        # 60,502 x 512, the size of SOP's test set
    python benchmarks/evaluation.py --queries 10000 --rows 1000000 --dim 128

Embeddings are random with structure: classes of 2 to 12 items (SOP's sizes) around random centres, noisy enough that
the Recall@1 is about that of a trained model. "FAISS" finds, on the same threads, as many neighbours as the metrics
look at for the largest class; it computes no metric. Extra memory is what the process has at most above what it had
with the embeddings loaded, each task in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import threading
import time
from pathlib import Path

import numpy as np


def embeddings(rows: int, dim: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 13, size=rows // 2)
    labels = np.repeat(np.arange(len(sizes)), sizes)[:rows]
    centres = rng.standard_normal((labels[-1] + 1, dim), dtype=np.float32)
    x = centres[labels] + noise * rng.standard_normal((rows, dim), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def by_us(query: np.ndarray, labels: np.ndarray, gallery: np.ndarray, all_labels: np.ndarray) -> str:
    from deepmetric.evaluation import retrieval_metrics

    one_set = len(query) == len(gallery)
    others = () if one_set else (gallery, all_labels)
    own = None if one_set else np.arange(len(query))
    scores = retrieval_metrics(query, labels, *others, ks=(1, 10, 100, 1000), self_index=own)
    return "  ".join(f"{name} {scores[name]:.4f}" for name in ("recall@1", "recall@1000", "map@r", "mrr"))


def by_faiss(query: np.ndarray, labels: np.ndarray, gallery: np.ndarray, all_labels: np.ndarray) -> str:
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    _, found = index.search(query, int(np.bincount(all_labels).max()))
    right = (all_labels[found[:, 1]] == labels).mean()
    return f"recall@1 {right:.4f} (with classes of one item counted)"


TASKS = {"FAISS flat search": by_faiss, "all metrics": by_us}


def measured(name: str, args: argparse.Namespace, results: multiprocessing.Queue) -> None:
    import faiss
    import torch

    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    x, labels = embeddings(args.rows, args.dim, args.noise)
    queries = args.queries or args.rows
    few = slice(0, 200)
    TASKS[name](x[few], labels[few], x[few].copy(), labels[few])  # imports and threads are there now
    before = resident()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    said = TASKS[name](x[:queries], labels[:queries], x, labels)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    results.put((seconds, (peak[0] - before) / 2**20, said))


def resident() -> int:
    """Bytes of memory that this process holds."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60502)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, help="the first rows alone are queries; default: all")
    parser.add_argument("--noise", type=float, default=2.3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="rounds in turn; the best of each counts")
    args = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    best: dict[str, tuple[float, float, str]] = {}
    for _ in range(args.rounds):
        for name in TASKS:
            results = context.Queue()
            process = context.Process(target=measured, args=(name, args, results))
            process.start()
            got = results.get()
            process.join()
            best[name] = min(best.get(name, got), got)
    queries = args.queries or args.rows
    print(f"{queries:,} queries in {args.rows:,} x {args.dim}, {args.threads} threads, best of {args.rounds}")
    floor = best["FAISS flat search"][0]
    for name, (seconds, memory, said) in best.items():
        print(
            f"{name:<18} {seconds:8.2f} s  {seconds / floor:5.2f} x FAISS  extra {memory:6.0f} MiB   {said}"
        )


if __name__ == "__main__":
    main()

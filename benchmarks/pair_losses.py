"""Times every pair loss against the two bare matrix products of its shapes, measured in the same run.

    python benchmarks/pair_losses.py [--threads 2] [--rounds 7] [--only multi-similarity]

Forward and backward together, the best of several interleaved rounds. "products" is `(x @ m.T) @ m` as one would
write it; "tiled" the same two products tile by tile into one buffer, the floor of any streamed form. The losses
are the forms of tests/losses/streamed/forms.py. PML is compared with if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepmetric.losses.streamed import Comparison

TESTS = Path(__file__).parents[1] / "tests" / "losses"
clock = time.perf_counter
MANY = 11318  # classes of Stanford Online Products, the usual task of a large memory


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def best_of(rounds: int, tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least seconds of each task; the tasks take turns, so that they meet the same noise."""
    best = dict.fromkeys(tasks, float("inf"))
    for task in tasks.values():
        task()
    for _ in range(rounds):
        for name, task in tasks.items():
            start = clock()
            task()
            best[name] = min(best[name], clock() - start)
    return best


def problem(n: int, m: int, d: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors in groups of four of one class (where there are many classes), and a memory of unit rows."""
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(n, d, generator=generator))
    memory = normalize(torch.randn(m, d, generator=generator))
    labels = torch.randint(classes, (n // 4,), generator=generator).repeat_interleave(4)
    return x, labels, memory, torch.randint(classes, (m,), generator=generator)


def products(x: Tensor, memory: Tensor, width: int | None = None) -> Callable[[], object]:
    if width is None:
        return lambda: (x @ memory.t()) @ memory
    tile, total = torch.empty(len(x), width), torch.zeros_like(x)

    def tiled() -> None:
        for lo in range(0, len(memory), width):
            torch.mm(x, memory[lo : lo + width].t(), out=tile)
            total.addmm_(tile, memory[lo : lo + width])

    return tiled


def step(form, x: Tensor, labels: Tensor, memory: Tensor, memory_labels: Tensor) -> Callable[[], object]:
    kind, unit, loss = form

    def run() -> None:
        leaf = x.clone().requires_grad_()
        pairs = Comparison(leaf, labels, memory, memory_labels, None, kind=kind, normalize=unit)
        loss(pairs).backward()

    return run


def against_memory(forms, rounds: int, only: list[str]) -> None:
    for classes in (MANY, 10):
        x, labels, memory, memory_labels = problem(256, 65536, 128, classes)
        positives = float((labels[:, None] == memory_labels).sum() / len(labels))
        print(f"\n256 x 65,536 x 128, {classes} classes, {positives:.1f} positives an anchor")
        print(f"{'loss':34}{'ms':>8}{'x products':>12}{'x tiled':>9}")
        every = forms.FORMS | more_forms(forms)
        names = (
            every if classes == MANY else ("multi-similarity", "contrastive cosine", "binomial", "NT-Xent")
        )
        for name in names:
            if name == "lifted" or (only and not any(part in name for part in only)):
                continue
            best = beside_products(step(every[name], x, labels, memory, memory_labels), x, memory, rounds)
            print(f"{name:34}" + in_ratios(best), flush=True)


def beside_products(run: Callable[[], object], x: Tensor, memory: Tensor, rounds: int) -> dict[str, float]:
    tasks = {"products": products(x, memory), "tiled": products(x, memory, 1024), "loss": run}
    return best_of(rounds, tasks)


def in_ratios(best: dict[str, float]) -> str:
    """Milliseconds of the loss, and how many times both forms of the products that is."""
    ratios = (best["loss"] / best[other] for other in ("products", "tiled"))
    return f"{best['loss'] * 1e3:8.1f}" + "{:12.2f}{:9.2f}".format(*ratios)


def more_forms(forms) -> dict[str, tuple]:
    """The margin losses, at one boundary for all classes; and hinges in reach of every pair, where few random rows are
    in reach of the usual ones and the others are left out."""

    def at(loss):
        return "distance", True, lambda c: loss(c, torch.full((len(c.anchors),), 1.2))

    return {
        "margin": at(forms.margin),
        "margin, distance-weighted": at(forms.margin_sampled),
        "contrastive cosine, all in reach": ("dot", True, lambda c: forms.contrastive_cosine(c, -1.0)),
        "ranked list, all in reach": ("distance", True, lambda c: forms.ranked_list(c, alpha=2.0)),
    }


def by_anchors(forms, rounds: int) -> None:
    print("\nmulti-similarity, anchors x 65,536 x 128")
    print(f"{'anchors':>9}{'ms':>8}{'x products':>12}{'x tiled':>9}")
    for n in (32, 64, 128, 256, 512):
        x, labels, memory, memory_labels = problem(n, 65536, 128, MANY)
        run = step(forms.FORMS["multi-similarity"], x, labels, memory, memory_labels)
        print(f"{n:9}" + in_ratios(beside_products(run, x, memory, rounds)), flush=True)


def by_memory_size(forms, rounds: int) -> None:
    print("\nmulti-similarity, 256 anchors x memory x 128: microseconds an entry")
    for m in (4096, 16384, 65536, 262144, 1048576):
        x, labels, memory, memory_labels = problem(256, m, 128, MANY)
        run = step(forms.FORMS["multi-similarity"], x, labels, memory, memory_labels)
        best = beside_products(run, x, memory, rounds)
        each = {name: seconds / m * 1e6 for name, seconds in best.items()}
        print(f"{m:9,}" + "".join(f"  {name} {each[name]:.3f}" for name in each), flush=True)


def small_batch(rounds: int) -> None:
    """112 x 112 without a memory, beside the dense forms of the losses."""
    from deepmetric.losses import ContrastiveLoss, MultiSimilarityLoss, TripletLoss
    from deepmetric.losses.inputs import checked_batch

    forms = load(TESTS / "dense.py").DENSE
    x, labels, *_ = problem(112, 4, 128, MANY)
    print("\n112 x 112 x 128, no memory: ms")
    for name, loss in (
        ("multi-similarity", MultiSimilarityLoss()),
        ("contrastive cosine", ContrastiveLoss()),
        ("triplet all", TripletLoss(mining="all")),
        ("triplet semi-hard", TripletLoss(mining="semihard")),
    ):

        def ours(loss=loss) -> None:
            loss(x.clone().requires_grad_(), labels).backward()

        def dense(loss=loss) -> None:
            forms[type(loss)](loss, checked_batch(x.clone().requires_grad_(), labels)).backward()

        best = best_of(20 * rounds, {"ours": ours, "dense": dense})
        print(f"{name:34}" + "".join(f"  {k} {v * 1e3:.2f}" for k, v in best.items()), flush=True)


def training_step(rounds: int) -> None:
    """What the losses and a memory take of a whole training step of a ResNet-50."""
    try:
        import timm
    except ImportError:
        print("\ntimm is not installed: no training step")
        return
    from deepmetric.losses import ContrastiveLoss, CrossBatchMemory, MultiSimilarityLoss

    batch = 32
    model = timm.create_model("resnet50", num_classes=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(MANY, (batch // 4,)).repeat_interleave(4)

    def trained(loss) -> dict[str, float]:
        """Least seconds of the loss (forward and backward to the embeddings) and of the whole step."""
        best = {"loss": float("inf"), "step": float("inf")}
        for _ in range(rounds):
            start = clock()
            embeddings = model(images)
            leaf = embeddings.detach().requires_grad_()
            before = clock()
            loss(leaf, labels).backward()
            best["loss"] = min(best["loss"], clock() - before)
            embeddings.backward(leaf.grad)
            optimizer.step()
            optimizer.zero_grad()
            best["step"] = min(best["step"], clock() - start)
        return best

    print(f"\ntraining step of ResNet-50, {batch} images of 224 x 224, memory of 65,536 x 128: ms")
    for name, loss in (
        ("multi-similarity", MultiSimilarityLoss()),
        ("contrastive cosine", ContrastiveLoss()),
    ):
        memory = CrossBatchMemory(loss, dim=128, size=65536)
        memory._enqueue(torch.randn(65536, 128), torch.randint(MANY, (65536,)))
        best = trained(memory)
        share = best["loss"] / best["step"]
        print(f"{name:34}{best['loss'] * 1e3:8.1f} of {best['step'] * 1e3:8.1f}, {share:.1%}", flush=True)


def pml(forms, rounds: int) -> None:
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        print("\nPML is not installed: no comparison")
        return
    x, labels, memory, memory_labels = problem(256, 65536, 128, MANY)
    miner, loss = (
        miners.MultiSimilarityMiner(epsilon=0.1),
        losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
    )

    def theirs() -> None:
        leaf = x.clone().requires_grad_()
        mined = miner(leaf, labels, memory, memory_labels)
        loss(leaf, labels, mined, ref_emb=memory, ref_labels=memory_labels).backward()

    ours = step(forms.FORMS["multi-similarity"], x, labels, memory, memory_labels)
    best = best_of(max(rounds // 3, 1), {"streamed": ours, "PML": theirs})
    print(
        f"\nmulti-similarity with mining, 256 x 65,536: PML {best['PML'] / best['streamed']:.0f} x our time"
    )


def peak_memory(name: str, classes: int) -> float:
    """MiB that the high-water mark of a step at full size lies above what the process held before it (Linux)."""
    forms = load(TESTS / "streamed" / "forms.py")
    x, labels, memory, memory_labels = problem(256, 65536, 128, classes)
    step(forms.FORMS[name], x, labels, memory[:2048], memory_labels[:2048])()
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from what is held now
    before = _status("VmRSS")
    step(forms.FORMS[name], x, labels, memory, memory_labels)()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="losses whose name contains any of these"
    )
    parser.add_argument("--rest", action="store_true", help="everything but the table of losses")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds of one thread: where others use the machine too"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        globals()["clock"], arguments.threads = time.process_time, 1
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(f"{peak_memory(arguments.peak[0], int(arguments.peak[1])):.1f}")
        return
    forms = load(TESTS / "streamed" / "forms.py")
    if arguments.rest:
        beside_the_table(forms, arguments)
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads, best of {arguments.rounds}")
    against_memory(forms, arguments.rounds, arguments.only)
    if arguments.only:
        return
    beside_the_table(forms, arguments)


def beside_the_table(forms, arguments: argparse.Namespace) -> None:
    print("\nextra peak memory of a step, 256 x 65,536 x 128, MiB")
    for name in ("multi-similarity", "contrastive cosine", "triplet all", "NT-Xent"):
        for classes in (MANY, 10) if name != "triplet all" else (MANY,):
            command = [
                sys.executable,
                __file__,
                "--threads",
                str(arguments.threads),
                "--peak",
                name,
                str(classes),
            ]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"{name:24}{classes:7} classes {out:>8}", flush=True)
    by_anchors(forms, arguments.rounds)
    by_memory_size(forms, max(arguments.rounds // 2, 2))
    small_batch(arguments.rounds)
    training_step(min(arguments.rounds, 4))
    pml(forms, arguments.rounds)


if __name__ == "__main__":
    main()

"""Times every loss with class weights against a plain cross-entropy of cosines of the same shapes, in the same run.

    python benchmarks/class_losses.py [--threads 1] [--rounds 7]

Forward and backward together, the best of several interleaved rounds. "plain" is
`cross_entropy(normalize(x) @ normalize(w).T * s, labels)` as one would write it, which keeps the matrix of logits and a
normalised copy of the weights. Losses of several centres a class have three, so three times the products.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from deepmetric import losses
from pair_losses import best_of

SHAPES = [(64, 100, 128), (128, 1_000, 128), (256, 1_000, 512), (128, 10_000, 512), (256, 100_000, 128)]
MAKES: dict[str, Callable[[int, int], nn.Module]] = {
    "Proxy-NCA": losses.ProxyNCALoss,
    "Proxy-Anchor": losses.ProxyAnchorLoss,
    "SoftTriple, 3 centres": lambda c, d: losses.SoftTripleLoss(c, d, 3),
    "normalised softmax": losses.NormalizedSoftmaxLoss,
    "CosFace": losses.CosFaceLoss,
    "ArcFace": losses.ArcFaceLoss,
    "sub-centre ArcFace, 3": losses.SubCenterArcFaceLoss,
    "SphereFace": losses.SphereFaceLoss,
    "a tenth of the classes": lambda c, d: losses.NormalizedSoftmaxLoss(c, d, negative_fraction=0.1),
}


class Plain(nn.Module):
    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim))

    def forward(self, x, labels):
        return cross_entropy(20 * normalize(x) @ normalize(self.weight).T, labels)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--largest", type=int, default=10**9, help="leave out shapes of more logits than this"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, best of {args.rounds}")
    for n, c, d in SHAPES:
        if n * c > args.largest:
            continue
        x = torch.randn(n, d, requires_grad=True)
        labels = torch.randint(c, (n,))

        def task(loss: nn.Module, x=x, labels=labels) -> Callable[[], object]:
            def run() -> None:
                loss.zero_grad()
                x.grad = None
                loss(x, labels).backward()

            return run

        tasks = {name: task(make(c, d)) for name, make in {"plain": Plain, **MAKES}.items()}
        best = best_of(args.rounds, tasks)
        print(f"\n{n} items x {c:,} classes x {d}\n{'loss':<28}{'ms':>10}{'x plain':>10}")
        for name, seconds in best.items():
            print(f"{name:<28}{1e3 * seconds:>10.2f}{seconds / best['plain']:>10.2f}")


if __name__ == "__main__":
    main()

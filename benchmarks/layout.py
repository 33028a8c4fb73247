"""Times networks on images of layout [B, H, W, 3] in memory, EmbeddingModel's on a CPU, against [B, 3, H, W].

    python benchmarks/layout.py [--threads 2] [--rounds 3]

Random weights; training is forward, backward and a step of SGD. The best of interleaved rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from deepmetric.models import EmbeddingModel
from pair_losses import best_of

# backbone, its arguments, images, pixels
NETWORKS = [
    ("deepmetric.models.ConvNet", {"blocks": 4, "width": 64}, 80, 32),
    ("deepmetric.models.BNInception", {}, 16, 224),
    ("timm:resnet50", {}, 16, 224),
    ("timm:resnet18", {}, 16, 224),
    ("timm:mobilenetv3_small_100", {}, 16, 224),
    ("timm:convnext_atto", {}, 16, 224),
    ("timm:vit_small_patch16_224", {}, 16, 224),
]
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def training(
    model: EmbeddingModel, images: torch.Tensor, layout: torch.memory_format
) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def run() -> None:
        model._layout = layout
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()

    return run


def embedding(
    model: EmbeddingModel, images: torch.Tensor, layout: torch.memory_format
) -> Callable[[], object]:
    def run() -> None:
        model._layout = layout
        with torch.inference_mode():
            model(images)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, best of {args.rounds}")
    print(f"{'network':32}{'':10}{'first, ms':>12}{'last, ms':>12}{'ratio':>8}")
    for name, arguments, batch, size in NETWORKS:
        model = EmbeddingModel(name, arguments, size=size)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        for what, task in (("training", training), ("embedding", embedding)):
            model.train(what == "training")
            best = best_of(args.rounds, {key: task(model, images, value) for key, value in LAYOUTS.items()})
            ms = [1e3 * seconds for seconds in best.values()]
            print(f"{name:32}{what:10}{ms[0]:12.0f}{ms[1]:12.0f}{ms[1] / ms[0]:8.2f}", flush=True)


if __name__ == "__main__":
    main()

"""Classes shared out over processes: each holds the proxies of a run of consecutive classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepmetric.losses.proxies.tiles import Logits
from deepmetric.losses.streamed.processes import Processes


class Share(NamedTuple):
    """Classes ``start`` to ``stop`` of C, those of this process. Neighbours' shares differ by one class at most."""

    start: int
    stop: int

    @classmethod
    def of(cls, num_classes: int, processes: Processes) -> Share:
        rank, size = processes.rank, processes.size
        return cls(rank * num_classes // size, (rank + 1) * num_classes // size)

    def local(self, labels: Tensor) -> Tensor:
        """Labels as positions in the share, -1 where they are another's."""
        here = (labels >= self.start) & (labels < self.stop)
        return torch.where(here, labels - self.start, -1)


def joined(logits: Logits, processes: Processes, over: str) -> Logits:
    """Of all items and the classes here: the same of all classes. (Over items ``others`` is complete as it is.)"""
    others = logits.others if over == "items" else logsumexp_of_all(logits.others, processes)
    return Logits(processes.sum(logits.own), others, processes.sum(logits.total))


def logsumexp_of_all(values: Tensor, processes: Processes) -> Tensor:
    """log Σ exp(value) over the processes, elementwise, with gradient; -inf where all are."""
    top = processes.max_(values.detach().clone())
    some = top > -torch.inf
    # Where there is something anywhere but nothing here, exp(-inf) = 0 has the gradient 0.
    total = processes.sum(torch.where(some, (values - torch.where(some, top, 0)).exp(), 0))
    return torch.where(some, torch.where(some, total, 1).log() + top, -torch.inf)


def own_gradient(proxies: Tensor, processes: Processes) -> Tensor:
    """``proxies`` unchanged. Backward sums here what arrives from all processes, and averages nothing afterwards, as
    nobody else has these proxies: divided by the number of processes it is the gradient."""
    return _Divided.apply(proxies, processes.size)


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, by: int) -> Tensor:
        ctx.by = by
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad / ctx.by, None

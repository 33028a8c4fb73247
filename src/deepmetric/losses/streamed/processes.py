"""Several processes: anchors gathered, references left where they are, partial reductions combined."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Processes(NamedTuple):
    """The processes that share one loss.

    Every process holds its rows of the references (its part of the memory, or its part of the batch) and
    reduces all anchors over them. Values are combined, so the loss is one number that all compute alike. The
    gradient is what DistributedDataParallel expects: its mean over the processes is the gradient of the loss.
    So every backward pass here sums what arrives from all processes; a part of a gradient and the same whole
    gradient everywhere are then treated alike.
    """

    group: Any = None  # a torch.distributed process group; None: all processes

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    def every(self, numbers: list[int], device: torch.device) -> Tensor:
        """These numbers of each process, [size, len(numbers)] int64 on the CPU."""
        mine = torch.tensor(numbers, device=device)
        every = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self.group)
        return torch.stack(every).cpu()

    def counts(self, rows: Tensor) -> list[int]:
        """How many rows each process has."""
        return self.every([len(rows)], rows.device)[:, 0].tolist()

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes in the order of ranks, with gradient; their numbers may differ."""
        attached = rows.requires_grad and torch.is_grad_enabled()
        every = self.every([len(rows), attached], rows.device)
        if every[:, 1].any() and not attached:
            # A process without rows of its own, say: it must take part in the others' backward pass.
            rows = rows.detach().requires_grad_()
        return _Gather.apply(rows, self, every[:, 0].tolist())

    def sum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self.group)
        return values

    def max_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def min_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.MIN, group=self.group)
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, with gradient."""
        return _Sum.apply(values, self)

    def keep_owned(self, value: Tensor, place: Tensor) -> None:
        """In place: ``value`` becomes the largest of all processes, and ``place`` stays with the first process
        that has it, -1 elsewhere."""
        best = self.max_(value.clone())
        mine = (value == best) & (place >= 0)
        owner = self.min_(torch.where(mine, self.rank, self.size))
        value.copy_(best)
        place.copy_(torch.where(owner == self.rank, place, -1))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes, counts: list[int]) -> Tensor:
        ctx.processes, ctx.counts = processes, counts
        # Padded to one length: gloo needs equal shapes.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded, group=processes.group)
        return torch.cat([part[:count] for part, count in zip(every, counts)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        grad = ctx.processes.sum_(grad.contiguous().clone())
        start = sum(ctx.counts[: ctx.processes.rank])
        return grad[start : start + ctx.counts[ctx.processes.rank]], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum_(values.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.processes.sum_(grad.contiguous().clone()), None

"""A run under torchrun: who this process is, and what all processes must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.losses import across_processes
from deepmetric.losses.streamed import Processes
from deepmetric.training.guards import check_finite, check_gradient
from deepmetric.training.shares import shared_out

if TYPE_CHECKING:
    from deepmetric.training.procedure import Procedure

# The others wait while the first process evaluates. (A process that died is noticed by torchrun at once.)
PATIENCE = timedelta(hours=12)


@contextmanager
def under_torchrun() -> Iterator[None]:
    """Start torch.distributed where torchrun has started several processes; end it with the block.

    CPU tensors go through gloo, those of a GPU through NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group(timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Team:
    """The processes of a run; one of them, ``first``, writes the run's folder and evaluates.

    Raises:
        InputError: torchrun has started several processes, and torch.distributed is not started.
    """

    def __init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            raise InputError(
                "several processes were started, but not torch.distributed: run `torchrun -m deepmetric.cli train`, "
                "or call torch.distributed.init_process_group before you build the Trainer."
            )
        self.size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.first = self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """``cuda`` without a number is, of several processes on a machine, another GPU for each."""
        if self.size == 1 or device.type != "cuda":
            return device
        number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if device.index is not None or number >= there:
            raise InputError(
                f"each process needs a GPU of its own: set training.device to auto or cuda (not {device}) and start "
                f"at most {there} processes on this machine."
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def from_first(self, value: Any) -> Any:
        """The first process's ``value``, a picklable object, everywhere."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def from_all(self, value: Any) -> list[Any]:
        """Everybody's ``value``, by rank."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, value)
        return every

    def rows_of_all(self, rows: Tensor) -> Tensor:
        """Everybody's ``rows``, in the order of ranks."""
        return rows if self.size == 1 else Processes().gather(rows)

    def share_loss(self, loss: nn.Module) -> None:
        """Have ``loss`` computed over the joined batch."""
        if self.size > 1:
            across_processes(loss)

    def share_model(self, model: nn.Module) -> nn.Module:
        """``model`` whose gradients are averaged over the processes; itself where it has none.

        Batch normalisation takes the statistics of each process's part of the batch, and its running statistics
        are the first process's.
        """
        if self.size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        return nn.parallel.DistributedDataParallel(model)

    def average_gradients(self, module: nn.Module) -> None:
        """Of parameters that are in no model of :meth:`share_model`; not of those that are shared out."""
        if self.size == 1:
            return
        shares = shared_out(module)
        for parameter in module.parameters():
            if parameter.grad is not None and parameter not in shares:
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(self.size)

    def refresh(self, procedure: Procedure, model: nn.Module) -> None:
        """``procedure.refresh()`` of the first process's model, and with the first process's outcome."""
        if self.size == 1:
            procedure.refresh()
            return
        for buffer in model.buffers():  # running statistics are each process's own from one batch to the next
            dist.broadcast(buffer, 0)
        procedure.refresh()
        # Ties and approximate searches need not come out alike twice, and batches are dealt by what was found.
        state = self.from_first(procedure.state_dict())
        if not self.first:
            procedure.load_state_dict(state)

    def whole_batch(
        self, embeddings: Tensor, labels: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The batch of which each process has a part, parts in the order of ranks."""
        if self.size == 1:
            return embeddings, labels, indices
        places = self.rows_of_all(indices.to(embeddings.device)).to(indices.device)
        return self.rows_of_all(embeddings), self.rows_of_all(labels), places

    def check_finite(self, loss: Tensor, embeddings: Tensor, step: int, ids: list[str]) -> None:
        """:func:`~deepmetric.training.guards.check_finite` in all processes or none, of everybody's items."""
        if self.size > 1:
            # One number that is finite where all are: a product with 0 is NaN or 0.
            loss = loss.detach() + embeddings.detach().mul(0).sum()
            dist.all_reduce(loss)
            if torch.isfinite(loss):
                return
            embeddings = self.rows_of_all(embeddings.detach())
            ids = self._ids_of_all(ids)
        check_finite(loss, embeddings, step, ids)

    def check_gradient(self, norm: Tensor, step: int, ids: list[str]) -> None:
        """:func:`~deepmetric.training.guards.check_gradient` of a norm that is the same in all processes."""
        if not torch.isfinite(norm):
            check_gradient(norm, step, self._ids_of_all(ids))

    def _ids_of_all(self, ids: list[str]) -> list[str]:
        return [one for part in self.from_all(ids) for one in part]

    def random_state(self, device: torch.device) -> dict[str, Any]:
        """The states of all processes' random generators, for a checkpoint: of the CPU and of ``device``."""
        # Not of all GPUs there are: the next machine may have fewer.
        cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        every = self.from_all({"cpu": torch.get_rng_state(), "cuda": cuda})
        return every[0] if self.size == 1 else {**every[0], "processes": every}

    def set_random_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from :meth:`random_state`; with another number of processes all but the first begin anew."""
        every = state.get("processes", [state])
        if self.rank and self.size != len(every):
            return
        mine = every[self.rank]
        torch.set_rng_state(mine["cpu"])
        if mine["cuda"] and device.type == "cuda":
            torch.cuda.set_rng_state(mine["cuda"][0], device)

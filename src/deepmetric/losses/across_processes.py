"""One loss over the batches of several processes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepmetric.errors import InputError
from deepmetric.losses.streamed.processes import Processes

Loss = TypeVar("Loss", bound=nn.Module)


def across_processes(loss: Loss, group: Any = None) -> Loss:
    """Make ``loss`` compute over the batches of all processes, as one process would over the joined batch.

    Afterwards every process calls the loss together with the others, each with its part of every argument
    (parts may differ in length or be empty): anchors are gathered, references stay where they are, and so does a
    :class:`~deepmetric.losses.CrossBatchMemory`, of which each process keeps a share. (Losses that need all references
    at once gather these too: :class:`~deepmetric.losses.TripletLoss` with ``swap``, and every
    :class:`~deepmetric.losses.PairLoss` that does not say ``over_parts``.) All processes get the same
    number. Its gradients are such that their mean over the processes is the gradient of the joined loss, for
    embeddings and for parameters of the loss: what ``DistributedDataParallel`` computes of the model's. Parameters
    of the loss itself are averaged by wrapping it in ``DistributedDataParallel`` too, or by hand. (Wrapped as a part of
    a larger module it needs ``broadcast_buffers=False`` there: a memory's rows differ from process to process.)

    Args:
        loss: is changed in place: every module in it that has an attribute ``processes`` (None until now) gets
            the :class:`~deepmetric.losses.streamed.Processes` there. A loss of one's own takes part by having that
            attribute: a :class:`~deepmetric.losses.PairLoss` has it, another module gathers in its ``forward``
            with ``embeddings, labels = self.processes.gather(embeddings), self.processes.gather(labels)``
            where it is not None.
        group: of torch.distributed, whose backend fits the loss's device; None: all processes.

    Returns:
        ``loss``.

    Raises:
        InputError: torch.distributed has not been started, or no module of ``loss`` can do this.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "across_processes needs the processes: call torch.distributed.init_process_group first, in a program "
            "started with torchrun."
        )
    able = [module for module in loss.modules() if hasattr(module, "processes")]
    if not able:
        raise InputError(
            f"{type(loss).__name__} cannot compute over several processes: neither it nor a module in it has the "
            "attribute `processes`. Derive it from deepmetric.losses.PairLoss, or see across_processes for what "
            "it has to do."
        )
    for module in able:
        module.processes = Processes(group)  # type: ignore[assignment]
    _keep_buffers_apart(loss)
    return loss


def _keep_buffers_apart(loss: nn.Module) -> None:
    """DistributedDataParallel gives all processes the buffers of the first, but for those named here."""
    names = [
        f"{path}.{name}" if path else name
        for path, module in loss.named_modules()
        for name in getattr(module, "of_process", ())
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, names)

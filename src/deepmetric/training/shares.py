"""Class weights shared out over processes: parameters of which each process has another part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepmetric.errors import InputError
from deepmetric.losses.proxies.base import ClassLoss


def shared_out(loss: nn.Module) -> dict[nn.Parameter, ClassLoss]:
    """The parameters of which this process has a part, and whose they are. None in a single process."""
    return {
        module.proxies: module
        for module in loss.modules()
        if isinstance(module, ClassLoss) and module.share is not None
    }


def clip_gradients(optimizer: Optimizer, loss: nn.Module, max_norm: float = math.inf) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ of all that is optimised, the parts of the other processes included.

    Returns the norm before clipping, a scalar; NaN or infinite where a gradient is.
    """
    shares = shared_out(loss)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not shares:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    whole = [p.grad.norm() ** 2 for p in parameters if p not in shares]  # none where all else is frozen
    squared = torch.stack([*whole, parameters[0].new_zeros(())]).sum()
    for parameter, module in shares.items():
        assert parameter.grad is not None
        assert module.processes is not None
        squared = squared + module.processes.sum_(parameter.grad.norm() ** 2)
    norm = squared.sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        parameter.grad.mul_(factor)
    return norm


class WholeState:
    """The state of an optimiser as one process would have it, and back into any number of processes.

    Raises:
        InputError: when a state is asked for that does not belong to the classes one by one, as that of Adam and SGD
            does: it cannot be cut.
    """

    def __init__(self, optimizer: Optimizer, loss: nn.Module):
        self.optimizer, self.loss = optimizer, loss

    def _shares(self, state: dict[int, Any]) -> Iterator[tuple[int, nn.Parameter, ClassLoss]]:
        shares = shared_out(self.loss)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, parameter in enumerate(parameters):
            if parameter in shares and number in state:
                yield number, parameter, shares[parameter]

    def state_dict(self) -> dict[str, Any]:
        """To be called by all processes, which join their parts."""
        state = self.optimizer.state_dict()
        for number, parameter, module in self._shares(state["state"]):
            assert module.processes is not None
            whole = dict(state["state"][number])
            for name, value in whole.items():
                if not isinstance(value, Tensor) or not value.dim():
                    continue
                if value.shape != parameter.shape:
                    raise InputError(
                        f"`{name}` of {type(self.optimizer).__name__} cannot be put together from the processes' "
                        f"shares: it has the shape {list(value.shape)}, not that of the class weights "
                        f"{list(parameter.shape)}. Take another optimizer, or leave `sharded` of the loss out."
                    )
                whole[name] = module.processes.gather(value).cpu()
            state["state"][number] = whole
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave, of the shared-out parameters this process's part."""
        parts = dict(state["state"])
        for number, _, module in self._shares(parts):
            parts[number] = {
                name: value[module.rows].clone() if isinstance(value, Tensor) and value.dim() else value
                for name, value in parts[number].items()
            }
        self.optimizer.load_state_dict({**state, "state": parts})

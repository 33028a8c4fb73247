"""What the backward passes of our Functions have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from deepmetric.errors import InputError


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast would take products back to half precision. (Where it is off, switching it off costs as much as a
    product of a small batch.)"""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device_type=device.type, enabled=False)
    return nullcontext()


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A Function's backward in full precision, also where the caller's ``backward()`` stands in autocast.

    Raises:
        InputError: with ``create_graph``. (once_differentiable waits for the second derivative, but never sees it
            where the gradient that arrives is a constant, or where the tensor is reached in another way: it would be a
            wrong number.)
    """

    @functools.wraps(backward)
    def call(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise InputError(
                "deepmetric's losses have gradients of the first order alone; `create_graph=True` asks for the second. "
                "Leave it out, or write the loss in plain torch operations."
            )
        with without_autocast(grads[0].device):
            return backward(ctx, *grads)

    return call

"""Rows of unit length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepmetric.losses.streamed.gradients import first_order


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [N, d] divided by their L2 norm; a zero row stays zero, with the gradient as it comes."""
    return _UnitRows.apply(rows) if rows.requires_grad and torch.is_grad_enabled() else _divided(rows)[0]


def cosines(rows: Tensor) -> Tensor:
    """Products [N, N] of the :func:`unit_rows` of rows [N, d] with each other."""
    return _Cosines.apply(rows)


def are_unit(rows: Tensor, dtype: torch.dtype) -> bool:
    """Whether rows [N, d] have length one in ``dtype`` but for rounding, so that to divide them by it would do nothing.

    False for other types, and elsewhere than on a CPU, where the answer would have to be waited for.
    """
    if rows.dtype != dtype or rows.device.type != "cpu":
        return False
    few = 4 * torch.finfo(dtype).eps  # a division leaves as much
    return all(
        bool((torch.linalg.vector_norm(part, dim=1).sub_(1).abs_() <= few).all()) for part in rows.split(8192)
    )


def _divided(rows: Tensor) -> tuple[Tensor, Tensor]:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    norms = torch.threshold_(norms, 0.0, 1.0)  # those of 0 are taken for 1
    return rows / norms, norms


class _UnitRows(torch.autograd.Function):
    """The gradient (g - u (u·g)) / |x| in four operations: autograd's are three times as many, a tenth of the time of
    a small batch's loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        unit, norms = _divided(rows)
        ctx.save_for_backward(unit, norms)
        return unit

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _before_division(grad, *ctx.saved_tensors)


def _before_division(grad: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    along = (unit * grad).sum(1, keepdim=True)
    return torch.addcmul(grad, unit, along, value=-1).div_(norms)


class _Cosines(torch.autograd.Function):
    """Unit rows and their products in one: to call a Function takes as long as five operations of a small batch."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        unit, norms = _divided(rows)
        ctx.save_for_backward(unit, norms)
        return unit @ unit.T

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        unit, norms = ctx.saved_tensors
        return _before_division((grad + grad.T) @ unit, unit, norms)

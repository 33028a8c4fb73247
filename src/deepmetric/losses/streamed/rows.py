"""Rows of unit length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [N, d] divided by their L2 norm; a zero row stays zero, with the gradient as it comes."""
    return _UnitRows.apply(rows) if rows.requires_grad and torch.is_grad_enabled() else _divided(rows)[0]


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
    norms = norms.masked_fill_(norms == 0, 1)
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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        unit, norms = ctx.saved_tensors
        along = (unit * grad).sum(1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).div_(norms)

"""What "similar" means, and how far rounding can shift it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Similarity = Literal["cosine", "dot", "euclidean"]


@dataclass(frozen=True)
class Space:
    """Rows prepared so that similarity is ``gallery @ query.T (+ bias)``: larger is nearer."""

    query: Tensor  # [N, d]
    gallery: Tensor  # [M, d]
    bias: Tensor | None  # [M, 1]
    slack: Tensor  # [N]: similarities of this query nearer than that are equal but for rounding
    relative_slack: float  # and this many times the similarity

    def similarities(self, rows: Tensor, out: Tensor) -> Tensor:
        """``[M, B]``, a column for each query, written to the start of ``out``, which has one dimension.

        On a CPU that way round: MKL takes half as long again for ``[B, M]`` (B of some hundred, M of many thousand),
        and maxima over groups of gallery items run over contiguous memory.
        """
        out = out[: len(self.gallery) * len(rows)].view(-1, len(rows))
        product(self.gallery, self.query[rows].T, out)
        return out if self.bias is None else out.add_(self.bias)

    def tie_line(self, value: Tensor, rows: Tensor) -> Tensor:
        """The least similarity that counts as equal to ``value`` ``[B, L]``."""
        line = value - self.slack[rows, None]
        return line - self.relative_slack * value.abs() if self.relative_slack else line


class Reranking(Protocol):
    """A similarity that depends on more than the two rows, such as
    :class:`~deepmetric.evaluation.postprocessing.KReciprocal`."""

    def prepare(self, query: Tensor, gallery: Tensor | None, self_index: Tensor | None) -> Space: ...


def prepare(
    query: Tensor,
    gallery: Tensor | None,
    similarity: Similarity | Reranking,
    self_index: Tensor | None = None,
) -> Space:
    """Normalise or centre as the similarity wants. ``gallery`` None: the queries themselves."""
    if not isinstance(similarity, str):
        return similarity.prepare(query, gallery, self_index)
    if similarity == "cosine":
        # Rows of length one bound the rounding whatever the input, so float32 is safe.
        q = unit_rows(query)
        g = q if gallery is None else unit_rows(gallery)
        return Space(q, g, None, q.new_full((len(q),), _rounding(q)), 0.0)
    # Rounding grows with the norms, and norms of raw vectors can be anything: float64.
    q = query.double()
    g = q if gallery is None else gallery.double()
    slack = _rounding(q)
    if similarity == "dot":
        return Space(q, g, None, slack * q.norm(dim=1) * g.norm(dim=1).max(), 0.0)
    # 2 q.g - |g|^2 = |q|^2 - |q - g|^2, the negative squared distance but for a constant of the query.
    # Centred, because rounding grows with what cancels.
    centre = g.mean(dim=0)
    q = q - centre
    g = q if gallery is None else g - centre
    return Space(2 * q, g, -g.square().sum(dim=1, keepdim=True), 2 * slack * q.square().sum(dim=1), slack)


def _rounding(x: Tensor) -> float:
    """How far the product of two rows of length one may differ from place to place in a matrix product.

    Measured on copies with MKL: up to sqrt(d) / 17 units in the last place in float32, sqrt(d) in float64, whose units
    are so small that a generous bound costs nothing.
    """
    root = x.shape[1] ** 0.5
    units = max(8, 4 * root) if x.dtype == torch.float64 else max(4, root / 10)
    return units * torch.finfo(x.dtype).eps


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays so and has similarity 0 to everything."""
    # By the largest entry first, so that squares neither overflow nor vanish.
    x = x / x.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=1, keepdim=True).clamp_min(
        0.5
    )  # a row that is not zero has a norm of 1 or more here


def product(rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    """``rows @ columns`` as exact as the type, whatever is set for training."""
    with _full_precision(rows.device):
        return torch.mm(rows, columns, out=out)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products as exact as the type, whatever is set for training (TF32, bfloat16, autocast)."""
    with ExitStack() as undo:
        undo.enter_context(torch.autocast(device.type, enabled=False))
        try:
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        except RuntimeError:  # torch 2.9 and later, where a program has set the precision of one backend
            for backend in (torch.backends.cuda, torch.backends.mkldnn):
                matmul: Any = backend.matmul
                undo.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
                matmul.fp32_precision = "ieee"
        yield

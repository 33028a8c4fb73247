"""Similarity mixup (Patel et al. 2022): virtual items between the items of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from deepmetric.losses.streamed.processes import Processes


def similarity_mixup(
    rows: Tensor, labels: Tensor, processes: Processes | None = None
) -> tuple[Tensor, Tensor]:
    """The rows and, for every two of one class, one between them; and the labels of all.

    Patel, Tolias, Matas, "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022, section 3.3.
    A virtual row is α x_i + (1 - α) x_j, α uniform in (0, 1) and drawn for each pair from torch's random numbers. It is
    not normalised again, so that its similarity with any row is the mixture of theirs. Four items a class become ten.

    Args:
        rows: [N, d], normalised.
        labels: [N] integers.
        processes: all of them have the same rows here and get the same mixture, that of the first.
    """
    i, j = (labels[:, None] == labels[None, :]).triu(1).nonzero().unbind(1)
    alpha = torch.rand(len(i), 1, device=rows.device, dtype=rows.dtype)
    if processes is not None:
        alpha = processes.sum_(alpha if processes.rank == 0 else torch.zeros_like(alpha))
    mixed = alpha * rows[i] + (1 - alpha) * rows[j]
    return torch.cat([rows, mixed]), torch.cat([labels, labels[i]])

"""What a ranking gives, and the most similar items of a block of similarities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ROWS = 16  # blocks are a multiple: others, and fewer, make the matrix product slower by half
# Longer ones are a multiple of this: in blocks of 544 the product was slower by a sixth than in blocks of 512.
MANY_ROWS = 512
COUNTED = 2048  # rows of similarities compared at a time
BEYOND = torch.iinfo(torch.int64).max  # a rank that no metric depends on and that was not worked out


class Ranks(NamedTuple):
    """What a block of queries found. All int64.

    queries: rows of the query set, ``[B]``.
    relevant: number of positives in the gallery, self left out, ``[B]``.
    first: rank (from 1) of the most similar positive, exact however deep; ``BEYOND`` without a positive,
        ``[B]``.
    rank: ranks of positives, exact up to their number; ``BEYOND`` for deeper ones and unused places,
        ``[B, L]``.
    ordinal: where ``rank`` holds one, which positive that is, the most similar being 1, ``[B, L]``.
    """

    queries: Tensor
    relevant: Tensor
    first: Tensor
    rank: Tensor
    ordinal: Tensor


def top_values(s: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each column of ``[M, B]`` in falling order and their rows, both ``[B, k]``, as ``torch.topk``
    has it but faster.

    Rows are dealt into groups; the k largest lie in the k groups with the largest maxima, and maxima are
    cheap. Of equal values any may be returned.
    """
    size, width = s.shape
    group = int(
        (size / k) ** 0.5
    )  # makes the two remaining searches, over groups and inside them, equally long
    if group < 4:
        value, index = s.T.contiguous().topk(k, dim=1)
        return value, index
    count = size // group
    # Group j holds the rows j, j + count, j + 2 count ...: the maximum then runs over contiguous memory.
    maxima = s[: group * count].view(group, count, width).amax(dim=0)
    chosen = maxima.T.contiguous().topk(k, dim=1).indices
    rows = chosen[:, :, None] + torch.arange(0, group * count, count, device=s.device)
    rest = torch.arange(group * count, size, device=s.device).expand(width, -1)
    rows = torch.cat([rows.flatten(1), rest], dim=1)
    value, place = s.T.gather(1, rows).topk(k, dim=1)
    return value, rows.gather(1, place)


def count_at_least(s: Tensor, line: Tensor) -> Tensor:
    """How many of each column of ``[M, B]`` are as large as its ``line`` ``[B]`` or larger, int64 ``[B]``.

    Part by part, compared and summed as numbers in the cache, which is many times faster than a Boolean matrix.
    """
    count, passed = torch.zeros_like(line, dtype=torch.int64), s.new_empty(COUNTED, s.shape[1])
    for part in s.split(COUNTED):
        count += torch.ge(part, line, out=passed[: len(part)]).sum(dim=0).long()
    return count

"""How anchors and references are cut into tiles, and which pairs of a tile are hidden from a reduction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Stands for minus infinity in a tile. Finite, so that masks may be applied by multiplication and addition:
# on a CPU these are 4 to 12 times as fast as `where` and `masked_fill` with a boolean mask.
BIG = 1e30
LOG2E = math.log2(math.e)  # exp2 takes a third of the time of exp, and does not slow down where it vanishes


class Hide(Protocol):
    """Puts a value, 0 or +-BIG, at the hidden pairs of a tile."""

    def __call__(self, tile: Tensor, value: float) -> None: ...


class Hidden(Protocol):
    """The pairs that a reduction must not see."""

    def of_tile(self, lo: int, hi: int, spare: Tensor) -> Hide: ...


class HiddenPairs:
    """Hidden pairs as a list: row and rank [E] each, sorted by rank unless all lie in one tile."""

    def __init__(self, row: Tensor, rank: Tensor, start: int, stop: int, width: int) -> None:
        self.row, self.column = row, (rank - start) % width
        last = (stop - start - 1) // width
        widths = torch.where((rank - start) // width == last, stop - start - last * width, width)
        self.widths, self.start, self.width = widths, start, width
        self.lengths = [len(rank)]
        if last > 0:
            edges = torch.arange(start, stop + width, width, device=rank.device)
            self.lengths = torch.searchsorted(rank, edges).diff().tolist()
        self.places: dict[bool, tuple[Tensor, ...]] = {}

    def places_in(self, tile: Tensor, lo: int) -> Tensor:
        """Where in the memory of a tile its hidden pairs are."""
        by_rows = tile.is_contiguous()
        if by_rows not in self.places:
            flat = self.row * self.widths + self.column if by_rows else self.column * tile.shape[0] + self.row
            self.places[by_rows] = flat.split(self.lengths)
        return self.places[by_rows][(lo - self.start) // self.width]

    def of_tile(self, lo: int, hi: int, spare: Tensor) -> Hide:
        return _HidePairs(self, lo)


class HiddenClasses:
    """Hidden are the pairs of one class, found tile by tile; for classes too large to list their pairs."""

    def __init__(self, row_class: Tensor, col_class: Tensor, also: HiddenPairs | None) -> None:
        self.rows = row_class[:, None]  # [n, 1] float: float comparisons are vectorised, integer ones are not
        self.cols = col_class  # [M] float
        self.also = also  # own copies that carry another label

    def of_tile(self, lo: int, hi: int, spare: Tensor) -> Hide:
        same = torch.eq(self.rows, self.cols[lo:hi], out=spare)
        return _HideClasses(same, self.also.of_tile(lo, hi, spare) if self.also is not None else None)


class _HidePairs:
    def __init__(self, pairs: HiddenPairs, lo: int) -> None:
        self.pairs, self.lo = pairs, lo

    def __call__(self, tile: Tensor, value: float) -> None:
        places = self.pairs.places_in(tile, self.lo)
        if places.shape[0]:
            memory = tile if tile.is_contiguous() else tile.t()
            memory.view(-1).index_fill_(0, places, value)


class _HideClasses:
    def __init__(self, same: Tensor, also: Hide | None) -> None:
        self.same, self.also = same, also

    def __call__(self, tile: Tensor, value: float) -> None:
        if value:
            tile.add_(self.same, alpha=value)
        else:
            tile.addcmul_(tile, self.same, value=-1)
        if self.also is not None:
            self.also(tile, value)


class Group(NamedTuple):
    """Anchors ``rows`` against the references of ranks ``start`` to ``stop``, ``width`` at a time."""

    rows: slice
    start: int
    stop: int
    width: int
    hidden: Hidden
    order: Tensor | None  # [M] reference of each rank; None: the rank is the position

    def tiles(self) -> Iterator[tuple[int, int]]:
        """None without anchors."""
        if self.rows.start < self.rows.stop:
            for lo in range(self.start, self.stop, self.width):
                yield lo, min(lo + self.width, self.stop)

    @property
    def single_tile(self) -> bool:
        return self.rows.start < self.rows.stop and 0 < self.stop - self.start <= self.width


def tile_width(anchors: int, like: Tensor) -> int:
    """References per tile. On a CPU half a MiB a thread, so that a tile, its masks and its references stay in
    the second-level cache; on a GPU 64 MiB, so that a tile fills the device."""
    mebibytes = 64 if like.is_cuda else 0.5 * min(torch.get_num_threads(), 8)
    width = max(int(mebibytes * 2**20) // like.element_size() // max(anchors, 1), 1)
    # A power of two; in a tile narrower than 256 the product is slow.
    return min(max(1 << (width.bit_length() - 1), 256), 16384)


def take_columns(tile: Tensor, columns: Tensor) -> Tensor:
    """[n, k] of [n, m], in the layout of the tile."""
    if tile.is_contiguous():
        return tile.index_select(1, columns)
    return tile.t().index_select(0, columns).t()


class Buffers:
    """Tiles of work space that are allocated once and reused; number ``i`` of shape [n, m].

    ``side_by_side``: the n numbers of a column lie beside each other in memory, and not the m of a row.
    """

    def __init__(self, like: Tensor, elements: int, *, side_by_side: bool = False) -> None:
        self.like, self.elements, self.side_by_side = like, elements, side_by_side
        self.flat: dict[int, Tensor] = {}
        self.shaped: dict[tuple[int, int, int], Tensor] = {}  # nearly all tiles have one shape

    def __call__(self, i: int, n: int, m: int) -> Tensor:
        tile = self.shaped.get((i, n, m))
        if tile is None:
            flat = self._flat(i, n * m)
            tile = self.shaped[i, n, m] = flat.view(m, n).t() if self.side_by_side else flat.view(n, m)
        return tile

    def rows(self, shape: torch.Size) -> Tensor:
        """Space for rows [m, d]."""
        return self._flat(-1, shape.numel()).view(shape)

    def _flat(self, i: int, elements: int) -> Tensor:
        if i not in self.flat or self.flat[i].shape[0] < elements:
            self.flat[i] = self.like.new_empty(max(self.elements, elements))
            self.shaped = {key: tile for key, tile in self.shaped.items() if key[0] != i}
        return self.flat[i][:elements]

"""Re-ranking by k-reciprocal neighbours: who is near to whom, both ways, counts beside the similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.evaluation.postprocessing.neighbours import nearest
from deepmetric.evaluation.similarity import Space, prepare

PIECE = 2**22  # pairs of entries that are compared at a time

Sparse = Any  # scipy's sparse matrices: their type stubs take the arrays in them for None


@dataclass(frozen=True)
class KReciprocal:
    r"""A similarity for :func:`~deepmetric.evaluation.retrieval_metrics`: (1 - λ) Jaccard index + λ cosine.

    Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. Each item p gets
    the set R(p, k1) of its k1 nearest that also have p among their k1 nearest (itself included), extended by
    R(q, k1/2) of every member q that shares two thirds of it (eq. 4); the set as a vector of weights
    exp(-distance) (eq. 7), of sum 1 here, averaged over the k2 nearest (eq. 11), and compared by the Jaccard index
    Σ min / Σ max (eq. 10).

    Neighbours are sought among queries and gallery together, as published: the other queries take part, so this is
    for test sets, not for a search that answers one query. An item that is query and gallery takes part once, as the
    query. Distances are 1 - cosine; the authors' code divides squared Euclidean distances by each row's largest.

    Args:
        k1: neighbours of the encoding. 20 is for classes of about that size: take no more than a class has.
        k2: neighbours over which encodings are averaged; 1: none.
        weight: λ, of the plain distance.

    Raises:
        InputError: when it is used with fewer than k1 + 1 items, or for k1, k2 below 1 or λ outside [0, 1].
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or not 1 <= self.k2 <= self.k1 + 1:
            raise InputError(
                f"`k1` and `k2` of KReciprocal are {self.k1} and {self.k2}; expected k1 of 1 or more and k2 from 1 to "
                "k1 + 1."
            )
        if not 0 <= self.weight <= 1:
            raise InputError(f"`weight` of KReciprocal is {self.weight}; expected 0 to 1.")

    def prepare(self, query: Tensor, gallery: Tensor | None, self_index: Tensor | None = None) -> Space:
        """What :mod:`deepmetric.evaluation.neighbours` ranks by; all on the CPU."""
        plain = prepare(query, gallery, "cosine")
        rows = plain.query
        place = torch.arange(len(plain.gallery), device=rows.device)  # of each gallery row among all items
        if gallery is not None:
            place += len(query)
            if self_index is not None:
                both = (self_index >= 0).nonzero().squeeze(1)
                place[self_index[both]] = both
            alone = place >= len(query)
            place[alone] = len(query) + torch.arange(int(alone.sum()), device=rows.device)
            rows = torch.cat([rows, plain.gallery[alone]])
        encoded = encode(rows.float().cpu().numpy(), self.k1, self.k2)
        return _Space(
            plain.query,
            plain.gallery,
            None,
            plain.slack,
            0.0,
            self.weight,
            encoded[: len(query)],
            encoded[place.cpu().numpy()].tocsc(),
        )


@dataclass(frozen=True)
class _Space(Space):
    weight: float
    encoded_query: Sparse  # [N, T]
    encoded_gallery: Sparse  # [M, T] by columns

    def similarities(self, rows: Tensor, out: Tensor) -> Tensor:
        similarity = super().similarities(rows, out)
        shared = shared_weight(self.encoded_query[rows.cpu().numpy()], self.encoded_gallery)
        jaccard = torch.from_numpy(shared).T.to(similarity)
        jaccard /= 2 - jaccard  # Σ max = 2 - Σ min, as each has a sum of 1
        return similarity.mul_(self.weight).add_(jaccard, alpha=1 - self.weight)


def encode(rows: np.ndarray, k1: int, k2: int) -> Sparse:
    """The weighted neighbour sets of unit rows ``[T, d]``: sparse ``[T, T]``, each row of sum 1."""
    from scipy.sparse import csr_matrix

    total = len(rows)
    if total <= k1:
        raise InputError(
            f"k-reciprocal re-ranking with k1 = {k1} needs more than {k1} items; there are {total}."
        )
    itself = np.arange(total)
    _, others = nearest(rows, rows, k1, itself)
    near = np.concatenate([itself[:, None], others], axis=1)  # [T, k1 + 1]

    def neighbours(k: int) -> Sparse:
        ones = np.ones(total * k, dtype=np.float32)
        return csr_matrix((ones, near[:, :k].ravel(), np.arange(0, total * k + 1, k)), (total, total))

    def reciprocal(k: int) -> Sparse:
        forward = neighbours(k + 1)
        return forward.multiply(forward.T).tocsr()

    wide, narrow = reciprocal(k1), reciprocal(max(1, round(k1 / 2)))
    # For every member q of R(p, k1): how many of R(q, k1/2) are in R(p, k1).
    common = wide.multiply(wide @ narrow.T).tocoo()
    size = np.asarray(narrow.sum(axis=1)).ravel()
    joins = common.data >= 2 / 3 * size[common.col] - 1e-6
    joined = csr_matrix((common.data[joins] * 0 + 1, (common.row[joins], common.col[joins])), wide.shape)
    sets = (wide + joined @ narrow).tocoo()

    weight = np.empty(sets.nnz, dtype=np.float32)
    for start in range(0, sets.nnz, 65536):
        part = slice(start, start + 65536)
        weight[part] = np.exp(
            np.einsum("nd,nd->n", rows[sets.row[part]], rows[sets.col[part]], dtype=np.float32) - 1
        )
    encoded = csr_matrix((weight, (sets.row, sets.col)), sets.shape)
    encoded = encoded.multiply(1 / encoded.sum(axis=1)).tocsr()
    return encoded if k2 == 1 else (neighbours(k2) @ encoded / k2).tocsr()


def shared_weight(query: Sparse, gallery: Sparse) -> np.ndarray:
    """Σ min(query_b, gallery_m) over the columns, dense float32 ``[B, M]``; ``gallery`` stored by columns."""
    compared = np.diff(gallery.indptr)[query.indices].cumsum(dtype=np.int64)
    before = np.concatenate([[0], compared])[query.indptr]  # of each row
    cuts = np.flatnonzero(np.diff(before[:-1] // PIECE)) + 1
    out = np.empty((query.shape[0], gallery.shape[0]), dtype=np.float32)
    for start, stop in zip([0, *cuts], [*cuts, len(out)]):
        out[start:stop] = _shared_weight(query[start:stop], gallery)
    return out


def _shared_weight(query: Sparse, gallery: Sparse) -> np.ndarray:
    first, after = gallery.indptr[query.indices], gallery.indptr[query.indices + 1]
    lengths = after - first
    # Every entry of the queries beside every entry of the gallery in its column.
    entry = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    row = np.repeat(np.arange(query.shape[0]), np.diff(query.indptr))
    smaller = np.minimum(np.repeat(query.data, lengths), gallery.data[entry])
    place = np.repeat(row, lengths) * gallery.shape[0] + gallery.indices[entry]
    flat = np.bincount(place, smaller, minlength=query.shape[0] * gallery.shape[0])
    return flat.reshape(query.shape[0], gallery.shape[0])

"""Retrieval metrics of embeddings: one number each, per query, and how far chance could move them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch

from deepmetric.errors import InputError, did_you_mean
from deepmetric.evaluation.bootstrap import class_bootstrap
from deepmetric.evaluation.clustering import cluster, clustering_metrics
from deepmetric.evaluation.inputs import as_classes, as_embeddings, as_labels
from deepmetric.evaluation.neighbours import BLOCK_BYTES, Ranks, rank_positives
from deepmetric.evaluation.similarity import Reranking, Similarity, unit_rows


class RetrievalMetrics(dict[str, float]):
    """Metric name -> value, as :func:`retrieval_metrics` describes it.

    per_query: metric name -> float64 ``[queries]``, NaN for a query without a positive in the gallery.
    intervals: metric name -> (low, high), when a bootstrap was asked for.
    """

    def __init__(
        self,
        values: dict[str, float],
        per_query: dict[str, np.ndarray],
        intervals: dict[str, tuple[float, float]],
    ) -> None:
        super().__init__(values)
        self.per_query = per_query
        self.intervals = intervals


def retrieval_metrics(
    query: Any,
    query_labels: Any,
    gallery: Any = None,
    gallery_labels: Any = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    similarity: Similarity | Reranking = "cosine",
    self_index: Any = None,
    clustering: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> RetrievalMetrics:
    r"""How well similarity finds items of the same class. Exact, in memory that does not grow with N x M.

    For a query with R positives (gallery items of its label, itself left out), ranked by falling similarity:

    - ``recall@k``: 1 if a positive is among the k nearest, else 0 (k beyond the gallery: the whole gallery).
    - ``precision@1``: 1 if the nearest item is a positive, else 0; the same number as ``recall@1``.
    - ``r_precision``: the share of positives among the R nearest.
    - ``map@r``: :math:`\frac1R\sum_{i=1}^{R} P(i)\,\mathrm{rel}(i)`, P(i) the precision among the i nearest.
    - ``mrr``: 1 / rank of the first positive.

    R-precision and MAP@R as in Musgrave et al., "A Metric Learning Reality Check" (ECCV 2020).

    Each is averaged over the queries that have a positive. Queries without one cannot be answered, are left
    out of the means and counted in ``queries_without_positive``; with no query left the means are NaN.
    Self: without ``gallery`` each query is left out of its own ranking, by its index. An exact copy of it
        stays.
    Ties: of equally similar items the negatives come first, whatever the order of the gallery, so that a
    collapsed model scores 0; see :mod:`deepmetric.evaluation.neighbours`.

    Args:
        query: ``[N, d]`` array or tensor. float64 is computed in float64, all else in float32. A tensor is
            worked on where it is.
        query_labels: ``[N]`` whole numbers or strings.
        gallery: ``[M, d]``; None: the queries search among themselves.
        gallery_labels: ``[M]``.
        ks: the k of recall@k.
        similarity: "cosine" (rows are normalised here), "dot", or "euclidean" (nearer is more similar). The
            last two are always computed in float64, because nothing bounds the rounding of vectors of any
            length. Or a re-ranking, such as
            :class:`~deepmetric.evaluation.postprocessing.KReciprocal`.
        self_index: ``[N]`` row of each query in ``gallery``, to be left out; -1 for one that is not in there.
            For queries that are part of a given gallery.
        clustering: add ``nmi`` and ``ami`` of a k-means clustering of the queries into as many clusters as
            they have classes (of normalised rows where ``similarity`` is cosine); see
            :mod:`deepmetric.evaluation.clustering`.
        bootstrap: number of resamples for 95 % intervals in ``.intervals``; 0: none. Whole classes are
            resampled; see
            :func:`deepmetric.evaluation.bootstrap.class_bootstrap`.
        seed: of the bootstrap and the k-means.
        ids: ``[N]`` names of the queries, for error messages.
        block_bytes: size of the block of similarities worked on at a time.

    Returns:
        The metrics above, and the counts ``queries``, ``queries_without_positive``, ``gallery`` and
        ``classes`` (of the queries); with ``.per_query`` and ``.intervals``.

    Raises:
        InputError: empty input, lengths or widths that disagree, NaN or infinite embeddings, a k below 1,
            ``bootstrap`` below 0.

    >>> m = retrieval_metrics([[1., 0.], [.9, .1], [0., 1.], [.2, .9]], [0, 0, 1, 1], ks=(1, 2))
    >>> m["recall@1"], m["map@r"], m["queries"]
    (1.0, 1.0, 4)
    """
    q = as_embeddings(query, "query", ids)
    q_labels = as_labels(query_labels, "query_labels", len(q), "query")
    if gallery is None:
        if gallery_labels is not None or self_index is not None:
            raise InputError("`gallery_labels` and `self_index` go with `gallery`, which is missing.")
        g, g_labels, own = None, None, None
    else:
        g = as_embeddings(gallery, "gallery").to(q.device)
        if q.shape[1] != g.shape[1]:
            raise InputError(
                f"`query` has {q.shape[1]} columns and `gallery` {g.shape[1]}: one model must make both."
            )
        if gallery_labels is None:
            raise InputError("`gallery` needs `gallery_labels`.")
        g_labels = as_labels(gallery_labels, "gallery_labels", len(g), "gallery")
        q, g = q.to(torch.promote_types(q.dtype, g.dtype)), g.to(torch.promote_types(q.dtype, g.dtype))
        own = None if self_index is None else _as_self_index(self_index, len(q), len(g))
    ks = _as_ks(ks)
    if bootstrap < 0:
        raise InputError(f"`bootstrap` is {bootstrap}; expected a number of resamples, or 0 for none.")
    if isinstance(similarity, str) and similarity not in get_args(Similarity):
        choices = get_args(Similarity)
        hint = did_you_mean(similarity, choices)
        raise InputError(f"`similarity` must be one of {', '.join(choices)}, got {similarity!r}.{hint}")

    q_classes, g_classes = as_classes(q_labels, g_labels)
    names = [f"recall@{k}" for k in ks] + ["precision@1", "r_precision", "map@r", "mrr"]
    per_query = {name: np.full(len(q), np.nan) for name in names}
    with torch.inference_mode():
        for ranks in rank_positives(
            q,
            torch.from_numpy(q_classes).to(q.device),
            g,
            torch.from_numpy(g_classes).to(q.device),
            None if own is None else own.to(q.device),
            similarity=similarity,
            block_bytes=block_bytes,
        ):
            for name, value in _block_metrics(ranks, ks).items():
                per_query[name][ranks.queries.cpu().numpy()] = value

    answerable = ~np.isnan(per_query["mrr"])
    values: dict[str, float] = {
        name: float(column[answerable].mean()) if answerable.any() else float("nan")
        for name, column in per_query.items()
    }
    if clustering:
        unit = similarity not in ("dot", "euclidean")
        assignment = cluster(unit_rows(q) if unit else q, len(np.unique(q_classes)), seed)
        values |= clustering_metrics(q_classes, assignment)
    values["queries"] = len(q)
    values["queries_without_positive"] = int((~answerable).sum())
    values["gallery"] = len(g_classes)
    values["classes"] = len(np.unique(q_classes))
    intervals = class_bootstrap(per_query, q_classes, bootstrap, seed) if bootstrap else {}
    return RetrievalMetrics(values, per_query, intervals)


def _block_metrics(ranks: Ranks, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Metric name -> ``[B]`` float64, NaN where there is no positive."""
    nan = torch.where(ranks.relevant > 0, 0.0, torch.nan).double()
    r = ranks.relevant.clamp_min(1)
    hit = ranks.rank <= ranks.relevant[:, None]
    values = {f"recall@{k}": (ranks.first <= k).double() for k in ks}
    values["precision@1"] = (ranks.first == 1).double()
    values["r_precision"] = hit.sum(dim=1).double() / r
    values["map@r"] = (ranks.ordinal.double() / ranks.rank).masked_fill(~hit, 0.0).sum(dim=1) / r
    values["mrr"] = 1 / ranks.first.double()
    return {name: (value + nan).cpu().numpy() for name, value in values.items()}


def _as_ks(ks: Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(int(k) for k in ks)
    if not all(k >= 1 and k == given for k, given in zip(numbers, ks)):
        raise InputError(f"`ks` must be whole numbers from 1, got {list(ks)}.")
    return tuple(dict.fromkeys(numbers))


def _as_self_index(value: Any, queries: int, gallery: int) -> torch.Tensor:
    index = torch.as_tensor(value)
    if index.shape != (queries,) or index.dtype == torch.bool or index.is_floating_point():
        raise InputError(
            f"`self_index` must be {queries} whole numbers, got {index.dtype} of shape {tuple(index.shape)}."
        )
    if index.min() < -1 or index.max() >= gallery:
        raise InputError(f"`self_index` must lie between -1 and {gallery - 1}, the gallery's last row.")
    return index.long()

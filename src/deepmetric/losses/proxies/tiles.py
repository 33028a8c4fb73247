"""Items against class weights in tiles of classes: no matrix of items by classes is kept, forward or backward."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepmetric.losses.proxies.pools import Pool
from deepmetric.losses.streamed.gradients import without_autocast
from deepmetric.losses.streamed.tiles import BIG, tile_width

# Up to this many logits one tile is kept for the backward pass, which else computes each tile once more.
KEPT = 2**20


class Logits(NamedTuple):
    """What is known of the logits scale * (similarity of item i and class c), without their matrix."""

    own: Tensor  # [N] of the item's own class; not among the classes at hand: what `Job.absent` says
    others: Tensor  # log-sum-exp over the other classes [N], or for each class over the other items [C]; -inf of none
    total: Tensor  # [N] sum over the other classes, 0 where it was not asked for


class Job(NamedTuple):
    """What is reduced, of which classes.

    ``labels`` [N] are positions among the classes at hand, -1 for an item whose class is not; ``classes`` are the
    rows (groups of ``centers`` rows) of the weights that are at hand, None: all. ``bounded``: no exp(logit), nor a
    sum of them, can leave the range of the dtype.
    """

    labels: Tensor
    classes: Tensor | None = None
    scale: float = 1.0
    over: Literal["classes", "items"] = "classes"
    centers: int = 1
    pool: Pool | None = None
    normalize: bool = True
    bounded: bool = False
    absent: float = math.nan
    wants_total: bool = False
    width: int | None = None


def class_logits(x: Tensor, weights: Tensor, job: Job) -> Logits:
    """Reductions of the logits of items ``x`` [N, d] and class weights [C * centers, d], with gradients for both.

    Weights of lower precision than x, and their normalisation, are converted tile by tile. First-order gradients
    only.
    """
    if not torch.is_grad_enabled():
        x, weights = x.detach(), weights.detach()
    return Logits(*_ClassLogits.apply(x, weights, job))


class_logits._torchdynamo_disable = True  # type: ignore[attr-defined]  # see streamed/operator.py


class _Tile(NamedTuple):
    lo: int
    hi: int
    rows: Tensor  # [m * K, d] as used
    inverse: Tensor | None  # [m * K, 1] by what they were multiplied
    similarity: Tensor  # [N, m * K], scaled; with one centre it is overwritten
    value: Tensor  # [N, m]
    own: tuple[Tensor, Tensor]  # items whose class is in the tile, and its column


class _ClassLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, job: Job) -> tuple[Tensor, Tensor, Tensor]:
        grad = any(ctx.needs_input_grad)
        n, count = len(x), _count(job, weights)
        width = job.width or _width(job, x, count)
        scaled = x * job.scale
        own = x.new_full((n,), job.absent)
        total = x.new_zeros(n)
        rows = n if job.over == "classes" else count
        shift = x.new_full((rows,), 0.0 if job.bounded else -0.1 * BIG)
        sums = x.new_zeros(rows)
        kept = None
        for lo in range(0, count, width):
            tile = _tile(job, scaled, weights, lo, min(lo + width, count))
            v = tile.value
            mine = v[tile.own]
            own[tile.own[0]] = mine
            if job.wants_total:
                total += v.sum(1).index_add(0, tile.own[0], mine, alpha=-1)
            keep = grad and count <= width and n * count <= KEPT
            if keep and job.pool is not None:
                v = v.clone()
            e, rescale = _exponentials(job, tile, v, shift)
            if job.over == "classes":
                if rescale is not None:
                    sums.mul_(rescale)
                sums += e.sum(1)
            else:
                sums[tile.lo : tile.hi] = e.sum(0)
            if keep:
                kept = (tile, e)
        if grad:
            ctx.job, ctx.width, ctx.kept, ctx.count = job, width, kept, count
            ctx.save_for_backward(x, weights, shift, sums)
        ctx.set_materialize_grads(False)
        return own, sums.log().add_(shift), total

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, g_own: Tensor | None, g_others: Tensor | None, g_total: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        with without_autocast(ctx.job.labels.device):  # the caller's `backward()` may stand in it
            return *_gradients(ctx, g_own, g_others, g_total), None


def _gradients(
    ctx: Any, g_own: Tensor | None, g_others: Tensor | None, g_total: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    job: Job = ctx.job
    x, weights, shift, sums = ctx.saved_tensors
    need_x, need_weights, _ = ctx.needs_input_grad
    scaled = x * job.scale
    factor = None if g_others is None else torch.where(sums > 0, g_others / sums, 0)
    single = ctx.count <= ctx.width and job.classes is None
    gx = torch.zeros_like(x) if need_x and not single else None
    gw = torch.zeros_like(weights) if need_weights and not single else None
    for lo in range(0, ctx.count, ctx.width):
        if ctx.kept is not None:
            tile, e = ctx.kept
            ctx.kept = None  # overwritten below: a second backward computes it again
        else:
            tile = _tile(job, scaled, weights, lo, min(lo + ctx.width, ctx.count))
            e = None
        if factor is None:
            e = torch.zeros_like(tile.value)
        else:
            if e is None:
                v = tile.value if job.pool is None else tile.value.clone()
                e = _weights(job, tile, v, shift)
            e.mul_(factor[:, None] if job.over == "classes" else factor[tile.lo : tile.hi])
        if g_total is not None and job.wants_total:
            e += g_total[:, None]
        e[tile.own] = 0.0 if g_own is None else g_own[tile.own[0]]
        if job.pool is not None:
            shape = (len(x), tile.hi - tile.lo, job.centers)
            e = job.pool.backward(e, tile.similarity.view(shape)).view_as(tile.similarity)
        if single:
            gx = e @ tile.rows if need_x else None
            gw = _unscaled(tile, e.t() @ scaled).to(weights.dtype) if need_weights else None
            break
        if gx is not None:
            gx.addmm_(e, tile.rows)
        if gw is not None:
            grad = _unscaled(tile, e.t() @ scaled).to(gw.dtype)
            if job.classes is None:
                gw[tile.lo * job.centers : tile.hi * job.centers] = grad
            else:
                gw[_places(job, tile.lo, tile.hi)] = grad
    if gx is not None:
        gx *= job.scale
    return gx, gw


def _count(job: Job, weights: Tensor) -> int:
    return len(weights) // job.centers if job.classes is None else len(job.classes)


def _width(job: Job, x: Tensor, count: int) -> int:
    """Classes a tile."""
    if len(x) * count * job.centers <= KEPT:
        return max(count, 1)
    return max(tile_width(len(x), x) // job.centers, 16)


def _tile(job: Job, scaled: Tensor, weights: Tensor, lo: int, hi: int) -> _Tile:
    k = job.centers
    if job.classes is None:
        rows = weights[lo * k : hi * k]
    else:
        rows = weights.index_select(0, _places(job, lo, hi))
    rows, inverse = rows.to(scaled.dtype), None
    if job.normalize:
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        inverse = norms.add_(norms == 0).reciprocal_()  # a zero row stays zero
        rows = rows * inverse
    similarity = scaled @ rows.t()
    value = similarity if job.pool is None else job.pool(similarity.view(len(scaled), hi - lo, k))
    if math.isnan(job.absent) and hi - lo == _count(job, weights):
        item = torch.arange(
            len(scaled), device=scaled.device
        )  # all are here: no need to wait for a GPU to say so
    else:
        item = ((job.labels >= lo) & (job.labels < hi)).nonzero()[:, 0]
    return _Tile(lo, hi, rows, inverse, similarity, value, (item, job.labels[item] - lo))


def _places(job: Job, lo: int, hi: int) -> Tensor:
    """Rows of the weights that belong to the classes lo to hi of those at hand."""
    assert job.classes is not None
    first = job.classes[lo:hi, None] * job.centers
    return (first + torch.arange(job.centers, device=first.device)).view(-1)


def _exponentials(job: Job, tile: _Tile, v: Tensor, shift: Tensor) -> tuple[Tensor, Tensor | None]:
    """exp(v - shift) in place of v, own classes 0; ``shift`` is brought up to date, and by what that rescales what
    was summed before."""
    rescale = None
    if not job.bounded:
        v[tile.own] = -BIG
        if job.over == "classes":
            now = torch.maximum(shift, v.amax(1))
            rescale = torch.exp(shift - now)
            shift.copy_(now)
        elif len(v):
            shift[tile.lo : tile.hi] = torch.maximum(shift[tile.lo : tile.hi], v.amax(0))
    return _weights(job, tile, v, shift), rescale


def _weights(job: Job, tile: _Tile, v: Tensor, shift: Tensor) -> Tensor:
    if not job.bounded:
        v -= shift[:, None] if job.over == "classes" else shift[tile.lo : tile.hi]
        # An exponential that underflows takes 20 times as long as another.
        v.clamp_min_(0.9 * math.log(torch.finfo(v.dtype).tiny))
    v.exp_()
    v[tile.own] = 0.0
    return v


def _unscaled(tile: _Tile, grad: Tensor) -> Tensor:
    """The gradient of rows as used, taken back through their normalisation."""
    if tile.inverse is None:
        return grad
    along = (grad * tile.rows).sum(1, keepdim=True)
    return grad.addcmul_(tile.rows, along, value=-1).mul_(tile.inverse)

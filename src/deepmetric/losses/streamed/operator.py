"""One pass over tiles: a reduction per anchor, and its gradient accumulated beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepmetric.losses.streamed.metric import Metric
from deepmetric.losses.streamed.not_compiled import not_compiled
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.tiles import Buffers, Group, Hide, take_columns

Weights = Tensor | tuple[Tensor, ...]

# Anchors up to which their values lie side by side where a reduction allows it: README.md, "Anchors side by side".
SIDE_BY_SIDE = 256


class Reduction(Protocol):
    """A reduction of one value per pair to one number per anchor (or more, then without gradient).

    ``state`` holds a row per anchor. ``tile`` takes the tile's values, may destroy them, and returns the
    weights dA/dV up to a factor per row that ``finish`` gives; ``state["rescale"]`` [n] multiplies what was
    accumulated so far. ``slopes`` are dA/dt of the parameters, accumulated in ``state`` as "slope0", ...
    A reduction to two numbers with gradients (``outputs`` = 2) gives a tuple of weights and of factors.
    """

    differentiable: bool
    # Attributes that may be missing: how many outputs have gradients (1), whether ``tile`` leaves values alone,
    # but for hidden ones, which it may make +-BIG (False), and whether it goes over whole tiles alone, so that their
    # columns may be what lies together in memory (False).
    outputs: int
    preserves: bool
    side_by_side: bool

    def start(self, rows: int, like: Tensor, params: Sequence[Tensor]) -> dict[str, Tensor]: ...

    def tile(
        self, state: dict[str, Tensor], v: Tensor, params: Sequence[Tensor], hide: Hide, spare: Any, lo: int
    ) -> Weights | None: ...

    def replay(
        self, state: dict[str, Tensor], v: Tensor, params: Sequence[Tensor], hide: Hide, spare: Any
    ) -> Weights: ...

    def combine(self, state: dict[str, Tensor], processes: Processes) -> None: ...

    def finish(self, state: dict[str, Tensor]) -> tuple[list[Tensor], Any]: ...


class Job(NamedTuple):
    """What is reduced over which pairs."""

    reduction: Any
    metric: Metric
    groups: list[Group]
    normalize_refs: bool
    processes: Processes | None


@not_compiled
def reduce(job: Job, anchors: Tensor, refs: Tensor, params: Sequence[Tensor] = ()) -> list[Tensor]:
    """The outputs of ``job.reduction``, a row per anchor; the first (or the first two, as the reduction says) have
    gradients for anchors, refs and params.

    Anchors [N, d], references [M, d], params [N] or [N, K]. References of lower precision than the anchors
    are converted tile by tile. First-order gradients only.
    """
    if not torch.is_grad_enabled():  # else the Function would accumulate what nobody asks for
        anchors, refs, params = anchors.detach(), refs.detach(), [p.detach() for p in params]
    return list(_Reduce.apply(anchors, refs, job, *params))


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, refs: Tensor, job: Job, *params: Tensor) -> tuple[Tensor, ...]:
        need_x, need_refs = ctx.needs_input_grad[:2]
        grad = job.reduction.differentiable and any(ctx.needs_input_grad)
        job.reduction.wanted = grad
        # A single tile keeps its weights instead of a second pass. Only where references take gradients:
        # otherwise nothing of the reference set may be saved, a memory is overwritten before backward.
        keep = grad and need_refs and len(job.groups) == 1 and job.groups[0].single_tile
        with torch.autocast(device_type=anchors.device.type, enabled=False):
            buffers = _buffers(job, anchors)
            runs = [
                _run(job, group, anchors, refs, params, buffers, grad, need_x, keep) for group in job.groups
            ]
            state = _joined([run.pop("state") for run in runs])
            if job.processes is not None:
                job.reduction.combine(state, job.processes)
            outputs, factor = job.reduction.finish(state)
        if grad:
            ctx.job, ctx.runs, ctx.factors = job, runs, _several(factor)
            # Not the outputs, whose graph leads back here: such a circle of two is never freed.
            ctx.state = {name: part for name, part in state.items() if all(part is not o for o in outputs)}
            # The anchors are needed for the references' gradient, and for the part along x of distances.
            need_x_again = need_refs or job.metric.radial
            ctx.save_for_backward(
                anchors if need_x_again else None, refs if need_refs else None, *(params if need_refs else ())
            )
        with_gradient = getattr(job.reduction, "outputs", 1) if job.reduction.differentiable else 0
        ctx.mark_non_differentiable(*outputs[with_gradient:])
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        arrived = [g for g in grads[: len(ctx.factors)] if g is not None]
        if not arrived:
            return (None,) * len(ctx.needs_input_grad)
        need_x, need_refs, _, *need_params = ctx.needs_input_grad
        anchors, refs, *params = ctx.saved_tensors
        with torch.autocast(device_type=arrived[0].device.type, enabled=False):
            gs = [torch.zeros_like(arrived[0]) if g is None else g for g in grads[: len(ctx.factors)]]
            if ctx.job.processes is not None:
                gs = [ctx.job.processes.sum_(g.contiguous().clone()) for g in gs]
            # dA/dV for the weights as they were accumulated
            gs = [g * factor for g, factor in zip(gs, ctx.factors)]
            slopes = [ctx.state[f"slope{k}"] if need else None for k, need in enumerate(need_params)]
            gp = [None if s is None else gs[0][:, None] * s if s.ndim == 2 else gs[0] * s for s in slopes]
            gs = [g * ctx.job.metric.scale for g in gs]
            gx = _anchor_gradient(ctx, gs, anchors, refs) if need_x else None
            gm = _reference_gradient(ctx, gs, anchors, refs, params) if need_refs else None
        return gx, gm, None, *gp


def _several(weights: Any) -> tuple[Any, ...]:
    return weights if isinstance(weights, tuple) else (weights,)


def _buffers(job: Job, like: Tensor) -> Buffers:
    rows = [group.rows.stop - group.rows.start for group in job.groups]
    sizes = [n * min(group.width, group.stop - group.start) for n, group in zip(rows, job.groups)]
    side_by_side = (
        getattr(job.reduction, "side_by_side", False)
        and not like.is_cuda
        and max(rows, default=0) <= SIDE_BY_SIDE
    )
    return Buffers(like, max(sizes, default=0), side_by_side=side_by_side)


def _load(
    job: Job, group: Group, refs: Tensor, lo: int, hi: int, dtype: torch.dtype, buffers: Buffers | None = None
) -> Tensor:
    """The references of a tile, converted and normalised as the job wants them."""
    rows = refs[lo:hi] if group.order is None else refs.index_select(0, group.order[lo:hi])
    if rows.dtype != dtype:
        rows = rows.to(dtype)
    if job.normalize_refs:
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        out = buffers.rows(rows.shape) if buffers is not None else None
        rows = torch.div(rows, norms.add_(norms == 0), out=out)
    return rows


def _run(
    job: Job,
    group: Group,
    anchors: Tensor,
    refs: Tensor,
    params: Sequence[Tensor],
    buffers: Buffers,
    grad: bool,
    need_x: bool,
    keep: bool,
) -> dict[str, Any]:
    """Reduce one group. Returns the state and, for each output with a gradient, B [n, d] and the row sums R [n], or
    the weights of a single tile."""
    reduction, metric = job.reduction, job.metric
    x, params = anchors[group.rows], [p[group.rows] for p in params]
    state = reduction.start(len(x), x, params)
    run: dict[str, Any] = {"state": state}
    accumulate = grad and need_x and not keep
    outputs = range(getattr(reduction, "outputs", 1))
    if accumulate:
        run["B"] = [torch.zeros_like(x) for _ in outputs]
        run["R"] = [x.new_zeros(len(x)) for _ in outputs] if metric.radial else []
    prepared, norms = metric.anchors(x)
    preserved = getattr(reduction, "preserves", False)
    n = len(x)
    # Whether few references had a weight in all tiles so far. (For a GPU's answer one would have to wait.)
    few = not x.is_cuda
    for lo, hi in group.tiles():
        tile_refs = _load(job, group, refs, lo, hi, x.dtype, buffers)
        v, distance = metric.values(prepared, norms, tile_refs, buffers, preserved)

        def spare(i: int, n: int = n, m: int = hi - lo) -> Tensor:
            return buffers(3 + i, n, m)

        hide = group.hidden.of_tile(lo, hi, buffers(2, n, hi - lo))
        weights = reduction.tile(state, v, params, hide, spare, lo)
        rescale = state.pop("rescale", None)
        if not grad or weights is None:
            continue
        weights = _several(weights)
        if keep:
            run["W"] = [metric.to_rows(w, distance) for w in weights]
        elif accumulate:
            weighed = _weighed(weights) if few else None
            few = weighed is not None
            if weighed is not None:
                tile_refs, weights = tile_refs[weighed], [take_columns(w, weighed) for w in weights]
                distance = distance.columns(weighed) if distance is not None else None
            weights = [metric.to_rows(w, distance) for w in weights]
            for total, w in zip(run["B"], weights):
                if rescale is not None:
                    total.mul_(rescale[:, None])
                total.addmm_(w, tile_refs)
            for total, w in zip(run["R"], weights):
                if rescale is not None:
                    total.mul_(rescale)
                total.add_(w.sum(1))
    return run


def _weighed(weights: Sequence[Tensor]) -> Tensor | None:
    """The columns of a tile with a weight that is not 0; None if they are so many that to pick them out takes longer
    than the product with all."""
    weighed = torch.stack([(w.amax(0) != 0) | (w.amin(0) != 0) for w in weights]).any(0)
    columns = weighed.nonzero()[:, 0]
    return columns if 3 * columns.shape[0] <= weighed.shape[0] else None


def _joined(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(states) == 1:
        return states[0]
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def _anchor_gradient(ctx: Any, gs: list[Tensor], anchors: Tensor | None, refs: Tensor | None) -> Tensor:
    job: Job = ctx.job
    metric = job.metric
    for group, run in zip(job.groups, ctx.runs):
        if "W" in run:
            assert refs is not None
            tile_refs = _load(job, group, refs, group.start, group.stop, gs[0].dtype)
            run["B"] = [w @ tile_refs for w in run["W"]]
            run["R"] = [w.sum(1) for w in run["W"]] if metric.radial else []
    gradient = None
    for k, g in enumerate(gs):
        total = _rows(ctx.runs, "B", k) * (-metric.slope * g)[:, None]
        if metric.radial:
            assert anchors is not None
            total.addcmul_(anchors, (metric.slope * g * _rows(ctx.runs, "R", k))[:, None])
        gradient = total if gradient is None else gradient.add_(total)
    assert gradient is not None
    return gradient


def _rows(runs: list[dict[str, Any]], name: str, output: int) -> Tensor:
    parts = [run[name][output] for run in runs]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _reference_gradient(
    ctx: Any, gs: list[Tensor], anchors: Tensor, refs: Tensor, params: Sequence[Tensor]
) -> Tensor:
    """A second pass over the tiles, where their weights are computed again (or were kept)."""
    job: Job = ctx.job
    metric = job.metric
    out = torch.zeros(refs.shape, dtype=anchors.dtype, device=refs.device)
    buffers = _buffers(job, anchors)
    for group, run in zip(job.groups, ctx.runs):
        x, grs = anchors[group.rows], [metric.slope * g[group.rows] for g in gs]
        state = {name: value[group.rows] for name, value in ctx.state.items()}
        rows = [p[group.rows] for p in params]
        prepared, norms = metric.anchors(x)
        preserved = getattr(job.reduction, "preserves", False)
        weighted = [x * -gr[:, None] for gr in grs]
        n = len(x)
        for lo, hi in group.tiles():
            tile_refs = _load(job, group, refs, lo, hi, x.dtype, buffers)
            if "W" in run:
                weights = run["W"]
            else:
                v, distance = metric.values(prepared, norms, tile_refs, buffers, preserved)

                def spare(i: int, n: int = n, m: int = hi - lo) -> Tensor:
                    return buffers(3 + i, n, m)

                hide = group.hidden.of_tile(lo, hi, buffers(2, n, hi - lo))
                weights = job.reduction.replay(state, v, rows, hide, spare)
                weights = [metric.to_rows(w, distance) for w in _several(weights)]
            part = torch.zeros_like(tile_refs)
            for w, rows_of_w, gr in zip(weights, weighted, grs):
                part.addmm_(w.t(), rows_of_w)
                if metric.radial:
                    part.addcmul_(tile_refs, (w.t() @ gr)[:, None])
            if group.order is None:
                out[lo:hi] += part
            else:
                out[group.order[lo:hi]] += part
    return out.to(refs.dtype)

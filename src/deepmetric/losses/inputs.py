"""What a pair loss is given: checked, on one device and in one dtype."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses.streamed.processes import Processes


class Batch(NamedTuple):
    """Anchors and the references they are compared with.

    Without a reference set the references are the anchors themselves and ``own`` is 0, 1, ..., N - 1. With
    ``processes`` the references (and ``own``) are this process's part of them, while the anchors and their
    labels are those of all processes, everywhere alike: a loss is then to be the same number everywhere.
    """

    anchors: Tensor  # [N, d] float32 or float64
    labels: Tensor  # [N] int64
    refs: Tensor  # [M, d] of the anchors' dtype or, unless it takes gradients, of a lower precision
    ref_labels: Tensor  # [M] int64
    own: Tensor | None  # [N] int64, the position of anchor i's own copy among the references; -1: it has none
    processes: Processes | None = None  # over which the references are spread

    def gathered(self) -> Batch:
        """The same with all references in this process: for a loss without a form over parts of them."""
        if self.processes is None:
            return self
        own = self.own
        if own is not None:
            start = sum(self.processes.counts(self.refs)[: self.processes.rank])
            own = self.processes.max_(torch.where(own >= 0, own + start, -1))
        refs, ref_labels = self.processes.gather(self.refs), self.processes.gather(self.ref_labels)
        return Batch(self.anchors, self.labels, refs, ref_labels, own)


def checked_batch(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    processes: Processes | None = None,
) -> Batch:
    """Check what the user gave and bring it to one device and one dtype, float32 or wider.

    Half-precision rows become float32, because in bfloat16 the similarities 0.9985 and 0.9995 are both 1.0
    and the hardest pairs would lose their order. References without gradient stay as they are: a memory in half
    precision is converted tile by tile. Nothing is copied that is already right. With ``processes`` each
    argument is this process's part of one that is the parts joined in the order of ranks: anchors are gathered,
    and references stay where they are.

    Raises:
        InputError: what is no tensor, embeddings that are not [N, d] floating point, labels that are not [N]
            integers, references without labels or of another width or device, a ``self_index`` of another length or
            out of range.
    """
    _check_rows("embeddings", embeddings)
    _check_labels("labels", labels, "embeddings", embeddings)
    n = len(embeddings)
    if ref_emb is None:
        if ref_labels is not None or self_index is not None:
            given = "ref_labels" if ref_labels is not None else "self_index"
            raise InputError(f"`{given}` was given without `ref_emb`. Give `ref_emb` too, or leave both out.")
        anchors = embeddings.to(_at_least_float32(embeddings.dtype))
        labels = _placed(labels, embeddings.device)
        if processes is not None:
            anchors, labels = processes.gather(anchors), processes.gather(labels)
            n = len(anchors)
        return Batch(anchors, labels, anchors, labels, torch.arange(n, device=embeddings.device))

    _check_rows("ref_emb", ref_emb)
    if ref_labels is None:
        raise InputError("`ref_emb` was given without `ref_labels`. Give the label of every reference row.")
    _check_labels("ref_labels", ref_labels, "ref_emb", ref_emb)
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise InputError(
            f"`ref_emb` has rows of width {ref_emb.shape[1]}, `embeddings` of width {embeddings.shape[1]}. "
            "Both must come from the same model."
        )
    if ref_emb.device != embeddings.device:
        raise InputError(
            f"`ref_emb` is on {ref_emb.device}, `embeddings` on {embeddings.device}. Move one of them "
            "(a memory moves with `memory.to(device)`)."
        )
    dtype = _at_least_float32(torch.promote_types(embeddings.dtype, ref_emb.dtype))
    device = embeddings.device
    if ref_emb.requires_grad:
        ref_emb = ref_emb.to(dtype)
    counts = [len(ref_emb)] if processes is None else processes.counts(ref_emb)
    if self_index is not None:
        _check_self_index(self_index, n, sum(counts))
        self_index = self_index.to(device, torch.int64)
    labels, ref_labels = _placed(labels, device), _placed(ref_labels, device)
    if ref_labels is labels:  # else taken for a batch with itself, where each row is its own copy
        ref_labels = labels.view_as(labels)
    batch = Batch(embeddings.to(dtype), labels, ref_emb, ref_labels, self_index, processes)
    return batch if processes is None else _with_all_anchors(batch, processes, sum(counts[: processes.rank]))


def _with_all_anchors(batch: Batch, processes: Processes, start: int) -> Batch:
    """The anchors of all processes in place of this one's; the first reference here is number ``start``."""
    own = batch.own
    if own is not None:
        own = processes.gather(own) - start
        own = torch.where((own >= 0) & (own < len(batch.refs)), own, -1)
    anchors, labels = processes.gather(batch.anchors), processes.gather(batch.labels)
    return batch._replace(anchors=anchors, labels=labels, own=own)


def _placed(labels: Tensor, device: torch.device) -> Tensor:
    """Labels on the device, all of one type: those of anchors are looked up among those of references."""
    return labels.to(device, torch.int64)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def check_tensor(name: str, given: object) -> None:
    if isinstance(given, Tensor):
        return
    hint = f"Hint: `torch.as_tensor({name})`."
    if isinstance(given, tuple):  # where pytorch-metric-learning has `indices_tuple`
        hint = (
            "Hint: indices of a miner have no place here, as losses mine within their own pass; see their options "
            "(`mining`, `epsilon`)."
        )
    raise InputError(f"`{name}` must be a tensor; got {type(given).__name__}. {hint}")


def _check_rows(name: str, rows: Tensor) -> None:
    check_tensor(name, rows)
    if rows.ndim != 2:
        raise InputError(
            f"`{name}` must be [N, d], one row an item; got shape {tuple(rows.shape)}. "
            "Hint: one item alone needs `[None]`, a feature map needs pooling."
        )
    if not rows.dtype.is_floating_point:
        raise InputError(f"`{name}` must be floating point; got {rows.dtype}.")


def _check_labels(name: str, labels: Tensor, rows_name: str, rows: Tensor) -> None:
    check_tensor(name, labels)
    if labels.shape != rows.shape[:1]:
        raise InputError(
            f"`{name}` must have one entry a row: expected shape ({len(rows)},) for `{rows_name}` of shape "
            f"{tuple(rows.shape)}, got {tuple(labels.shape)}. Hint: one-hot labels? Pass `{name}.argmax(1)`."
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise InputError(f"`{name}` must be integers; got {labels.dtype}. Hint: `{name}.long()`.")


def _check_self_index(self_index: Tensor, n: int, m: int) -> None:
    check_tensor("self_index", self_index)
    if self_index.shape != (n,) or self_index.dtype.is_floating_point or self_index.dtype == torch.bool:
        raise InputError(
            f"`self_index` must be {n} integers, one an anchor; got {self_index.dtype} of shape "
            f"{tuple(self_index.shape)}."
        )
    # On a GPU reading the values would make the step wait; there an index out of range matches nothing.
    if (
        self_index.device.type == "cpu"
        and n
        and not (-1 <= int(self_index.min()) <= int(self_index.max()) < m)
    ):
        raise InputError(
            f"`self_index` must lie between -1 (no own copy) and {m - 1} (the last of {m} references); "
            f"got {int(self_index.min())} to {int(self_index.max())}."
        )

"""Cross-batch memory (Wang et al. 2020): a pair loss against the embeddings of the last batches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.losses.inputs import checked_batch


class CrossBatchMemory(nn.Module):
    """A ring buffer of past embeddings around a pair loss: the batch's loss plus the loss against the memory.

    Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020. A call first writes the
    batch into the buffer, over the oldest rows, and then returns

        batch_weight * loss(batch) + memory_weight * loss(batch, ref = memory)

    where every anchor's own copy in the memory is left out by its position. Memory rows are constants. While
    fewer than ``warmup_steps`` calls were made only ``loss(batch)`` is returned, with weight 1, and nothing
    is stored: embeddings change too fast then to be of use later.

    Args:
        loss: any pair loss with the interface of :class:`~deepmetric.losses.base.PairLoss`.
        dim: width of the embeddings.
        size: rows that the memory holds.
        warmup_steps: calls before the memory is used.
        batch_weight: weight of the loss within the batch; 0 leaves it out (memory alone).
        memory_weight: weight of the loss against the memory.
        dtype: precision of the store. Half precision halves the memory; the loss is computed in float32
            either way, of rows converted tile by tile.

    The losses of this package read the memory in tiles: no copy of it and no [N, size] matrix is made.

    In ``eval()`` mode the memory is read but nothing is written or counted.

    All state is in ``state_dict``, as tensors of fixed shapes and dtypes: ``embeddings`` [size, dim] (as
    given, not normalised), ``labels`` [size] int64 (-1: empty), ``cursor`` (where the next row goes),
    ``filled`` (rows in use), ``step`` (calls made in training).

    >>> from deepmetric.losses import ContrastiveLoss
    >>> memory = CrossBatchMemory(ContrastiveLoss(), dim=2, size=4)
    >>> x = torch.nn.functional.normalize(torch.randn(3, 2), dim=1).requires_grad_()
    >>> memory(x, torch.tensor([0, 0, 1])).backward()
    >>> int(memory.filled), memory.labels.tolist()
    (3, [0, 0, 1, -1])
    """

    embeddings: Tensor
    labels: Tensor
    cursor: Tensor
    filled: Tensor
    step: Tensor

    def __init__(
        self,
        loss: nn.Module,
        dim: int,
        size: int,
        warmup_steps: int = 0,
        batch_weight: float = 1.0,
        memory_weight: float = 1.0,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if dim < 1 or size < 1:
            raise InputError(
                f"`dim` and `size` of CrossBatchMemory must be at least 1; got {dim} and {size}."
            )
        if dtype not in ("float32", "float16", "bfloat16"):
            raise InputError(
                f"`dtype` of CrossBatchMemory is {dtype!r}; expected float32, float16 or bfloat16."
            )
        self.loss = loss
        self.dim = dim
        self.size = size
        self.warmup_steps = warmup_steps
        self.batch_weight = batch_weight
        self.memory_weight = memory_weight
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=getattr(torch, dtype)))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("cursor", torch.tensor(0))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("step", torch.tensor(0))
        # The graph that still needs the buffer as it is now; see `_enqueue`.
        self._reader: object | None = None

    def forward(self, embeddings: Tensor, labels: Tensor, enqueue_mask: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar attached to the graph.

        Args:
            embeddings: [N, dim] floating point. A batch larger than the memory leaves its last ``size`` rows
                there.
            labels: [N] integers.
            enqueue_mask: [N] bool. Rows where it is True go into the memory and are no anchors; the other
                rows are the anchors and are not stored, so that no anchor has a copy of its own there. (For
                two encoders, as in MoCo: the keys are stored, the queries learn.) None: every row is both.

        Raises:
            InputError: as of the wrapped loss; embeddings of another width or on another device than the
            memory.
        """
        self._check(embeddings, labels, enqueue_mask)
        anchors, anchor_labels = embeddings, labels
        stored, stored_labels = embeddings, labels
        if enqueue_mask is not None:
            anchors, anchor_labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
            stored, stored_labels = embeddings[enqueue_mask], labels[enqueue_mask]

        if self.training:
            self.step += 1
        if int(self.step) <= self.warmup_steps:
            return self.loss(anchors, anchor_labels)

        self_index = None
        if self.training:
            positions = self._enqueue(stored, stored_labels)
            self_index = positions if enqueue_mask is None else None

        # Also what a memory without rows and a weight of 0 leave: zero, but attached.
        total = embeddings[:0].sum()
        if self.batch_weight:
            total = total + self.batch_weight * self.loss(anchors, anchor_labels)
        filled = int(self.filled)
        if self.memory_weight and filled:
            against_memory = self.loss(
                anchors,
                anchor_labels,
                ref_emb=self.embeddings[:filled],
                ref_labels=self.labels[:filled],
                self_index=self_index,
            )
            self._lend(against_memory)
            total = total + self.memory_weight * against_memory
        return total

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Write rows over the oldest ones. Returns their positions [N], -1 for rows that did not fit."""
        n = len(embeddings)
        positions = (self.cursor + torch.arange(n, device=embeddings.device)) % self.size
        kept = slice(max(n - self.size, 0), n)
        if self._reader is not None:
            # Another step's loss is still to be differentiated (two forward passes, then backward) and its graph
            # may need the old rows (that of a user's own loss, or of very many positives, does): it keeps them,
            # we go on with a copy.
            self.embeddings = self.embeddings.clone()
            self._reader = None
        self.embeddings[positions[kept]] = embeddings[kept].to(self.embeddings.dtype)
        self.labels[positions[kept]] = labels[kept].to(self.labels)
        self.cursor.copy_((self.cursor + n) % self.size)
        self.filled.copy_((self.filled + n).clamp_max(self.size))
        positions[: kept.start] = -1
        return positions

    def _lend(self, loss: Tensor) -> None:
        """Remember that ``loss`` may need the buffer unchanged until it has been differentiated."""
        if not loss.requires_grad:
            return
        reader = self._reader = object()

        def done(gradient: Tensor) -> None:
            if self._reader is reader:
                self._reader = None

        loss.register_hook(done)

    def _check(self, embeddings: Tensor, labels: Tensor, enqueue_mask: Tensor | None) -> None:
        checked_batch(embeddings, labels)
        if embeddings.shape[1] != self.dim:
            raise InputError(
                f"`embeddings` have width {embeddings.shape[1]}, the memory holds rows of width {self.dim}. "
                f"Build it with CrossBatchMemory(..., dim={embeddings.shape[1]})."
            )
        if embeddings.device != self.embeddings.device:
            raise InputError(
                f"`embeddings` are on {embeddings.device}, the memory is on {self.embeddings.device}. "
                "Move it once with `memory.to(device)`."
            )
        if enqueue_mask is not None and (
            enqueue_mask.shape != labels.shape or enqueue_mask.dtype != torch.bool
        ):
            raise InputError(
                f"`enqueue_mask` must be {len(labels)} booleans, one a row; got {enqueue_mask.dtype}, shape "
                f"{tuple(enqueue_mask.shape)}."
            )

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, size={self.size}, warmup_steps={self.warmup_steps}, "
            f"batch_weight={self.batch_weight}, memory_weight={self.memory_weight}"
        )

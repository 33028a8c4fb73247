"""Cross-batch memory (Wang et al. 2020): a pair loss against the embeddings of the last batches."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.losses.inputs import check_tensor, checked_batch
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.weighted_sum import WeightedSum


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

    The losses of this package read the memory in tiles: no copy of it and no [N, size] matrix is made. (Not so the
    ranking losses, HDC, BIER and the hierarchical triplet loss; class and clustering losses take no memory.)

    In ``eval()`` mode the memory is read but nothing is written or counted.

    All state is in ``state_dict``, as tensors of fixed shapes and dtypes: ``embeddings`` [size, dim] (as
    given, not normalised), ``labels`` [size] int64 (-1: empty), ``cursor`` (where the next row goes),
    ``filled`` (rows in use), ``step`` (calls made in training).

    Over several processes (:func:`~deepmetric.losses.across_processes`) the memory is that of one process with
    the joined batches, row by row; ``size`` is its whole size and each process holds an equal share of it,
    process r the rows from ``r * size // R``. ``state_dict()`` joins the shares: it must be called by all
    processes, gives each the state of one process, and loads on any number of them.

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

    # Buffers of which each process has a part of its own: see `across_processes`.
    of_process = ("embeddings", "labels")

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
        self._usable = _takes_references(loss)
        # The graph that still needs the buffer as it is now; see `_enqueue`.
        self._reader: object | None = None
        self._processes: Processes | None = None

    @property
    def processes(self) -> Processes | None:
        """The processes over which the memory is spread, set by :func:`~deepmetric.losses.across_processes`."""
        return self._processes

    @processes.setter
    def processes(self, processes: Processes | None) -> None:
        if processes is not None and not any(hasattr(module, "processes") for module in self.loss.modules()):
            raise InputError(
                f"CrossBatchMemory cannot be spread over processes around {type(self.loss).__name__}, which compares "
                "with the references of one process alone. Take a loss derived from deepmetric.losses.PairLoss."
            )
        if self._processes is not None:
            self.embeddings, self.labels = self._whole(self.embeddings), self._whole(self.labels)
        self._processes = processes
        mine = self._share
        if processes is not None:
            # Copies, so that the rest is freed.
            self.embeddings, self.labels = self.embeddings[mine].clone(), self.labels[mine].clone()

    @property
    def _share(self) -> slice:
        """The rows of the memory that are here."""
        if self.processes is None:
            return slice(0, self.size)
        rank, processes = self.processes.rank, self.processes.size
        return slice(rank * self.size // processes, (rank + 1) * self.size // processes)

    def _whole(self, share: Tensor) -> Tensor:
        return self.processes.gather(share) if self.processes is not None else share

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.of_process:
            destination[prefix + name] = self._whole(destination[prefix + name])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "embeddings")
        if saved is not None and saved.shape != (self.size, self.dim):
            # Nothing of it, as a cursor without its rows would be worse.
            errors = args[-1]
            errors.append(
                f"the saved memory `{prefix}embeddings` is of {tuple(saved.shape)} numbers (size, dim), this one "
                f"of ({self.size}, {self.dim}); build it with the saved `size` and `dim`."
            )
            return
        for name in self.of_process:
            if prefix + name in state_dict:
                state_dict[prefix + name] = state_dict[prefix + name][self._share]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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
            InputError: as of the wrapped loss, or one that takes no references; embeddings of another width or on
            another device than the memory.
        """
        self._check(embeddings, labels, enqueue_mask)
        anchors, anchor_labels = embeddings, labels
        stored, stored_labels = embeddings, labels
        if enqueue_mask is not None:
            anchors, anchor_labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
            stored, stored_labels = embeddings[enqueue_mask], labels[enqueue_mask]

        warming_up = int(self.step) < self.warmup_steps
        if self.training:
            self.step += 1
        if warming_up:
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
            here = max(filled - self._share.start, 0)
            against_memory = self.loss(
                anchors,
                anchor_labels,
                ref_emb=self.embeddings[:here],
                ref_labels=self.labels[:here],
                self_index=self_index,
            )
            self._lend(against_memory)
            total = total + self.memory_weight * against_memory
        return total

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Write rows over the oldest ones, with those of the other processes. Returns the positions [N] of the rows
        given here in the whole memory, -1 for rows that did not fit."""
        embeddings, labels = embeddings.to(self.embeddings.dtype), labels.to(self.labels)
        mine = slice(0, len(embeddings))
        if self.processes is not None:
            counts = self.processes.counts(labels)
            before = sum(counts[: self.processes.rank])
            mine = slice(before, before + len(labels))
            embeddings, labels = self.processes.gather(embeddings), self.processes.gather(labels)
        n, share = len(labels), self._share
        positions = (self.cursor + torch.arange(n, device=labels.device)) % self.size
        positions[: max(n - self.size, 0)] = -1
        if self._reader is not None:
            # Another step's loss is still to be differentiated (two forward passes, then backward) and its graph
            # may need the old rows (that of a user's own loss, or of very many positives, does): it keeps them,
            # we go on with a copy.
            self.embeddings = self.embeddings.clone()
            self._reader = None
        here = ((positions >= share.start) & (positions < share.stop)).nonzero()[:, 0]
        at = positions[here] - share.start
        self.embeddings[at], self.labels[at] = embeddings[here], labels[here]
        self.cursor.copy_((self.cursor + n) % self.size)
        self.filled.copy_((self.filled + n).clamp_max(self.size))
        return positions[mine]

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
        if not self._usable:
            raise InputError(
                f"CrossBatchMemory holds references, and {type(self.loss).__name__} takes none: its forward has no "
                "`ref_emb`, `ref_labels` and `self_index`. Leave the memory out, or take a loss with the interface of "
                "deepmetric.losses.PairLoss."
            )
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
        if enqueue_mask is None:
            return
        check_tensor("enqueue_mask", enqueue_mask)
        if enqueue_mask.shape != labels.shape or enqueue_mask.dtype != torch.bool:
            raise InputError(
                f"`enqueue_mask` must be {len(labels)} booleans, one a row; got {enqueue_mask.dtype}, shape "
                f"{tuple(enqueue_mask.shape)}."
            )

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, size={self.size}, warmup_steps={self.warmup_steps}, "
            f"batch_weight={self.batch_weight}, memory_weight={self.memory_weight}"
        )


def _takes_references(loss: nn.Module) -> bool:
    if isinstance(loss, WeightedSum):
        return all(_takes_references(part) for part in loss.losses)
    taken = signature(loss.forward).parameters
    return {"ref_emb", "ref_labels", "self_index"} <= set(taken) or any(
        parameter.kind is Parameter.VAR_KEYWORD for parameter in taken.values()
    )

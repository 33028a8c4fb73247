"""Embeddings and labels as users hand them over, checked and turned into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepmetric.errors import InputError


def as_embeddings(value: Any, name: str, ids: Sequence[str] | None = None) -> Tensor:
    """A finite floating ``[N, d]`` tensor with N, d > 0, where it already is. float64 stays, all else becomes
    float32.

    Raises:
        InputError: another shape, no rows, or a value that is not finite (naming the first such row).
    """
    if isinstance(value, Tensor):
        x = value.detach()
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise InputError(f"`{name}` must hold real numbers, got {array.dtype}.")
        wide = array.dtype.kind == "f" and array.dtype.itemsize >= 8
        # What torch does not take: other byte orders, negative strides and, with a warning, read-only memory.
        array = array.astype(np.float64 if wide else np.float32, copy=False)
        x = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if x.is_complex():
        raise InputError(f"`{name}` must hold real numbers, got {x.dtype}.")
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"`{name}` must be a matrix with one embedding a row, got shape {tuple(x.shape)}.")
    if x.dtype != torch.float64:
        x = x.float()
    if ids is not None and len(ids) != len(x):
        raise InputError(f"`ids` must have one entry per row of `{name}`: expected {len(x)}, got {len(ids)}.")
    finite = torch.isfinite(x).all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        which = f"row {row}" + (f" (item {ids[row]!r})" if ids is not None else "")
        bad = int((~finite).sum())
        raise InputError(
            f"`{name}` has NaN or infinite values in {bad} of {len(x)} rows, the first in {which}. "
            "The model that made them has diverged or overflowed: look at its loss, or embed in float32."
        )
    return x


def as_labels(value: Any, name: str, length: int, of: str) -> np.ndarray:
    """One whole number or string per embedding, ``[length]``.

    Raises:
        InputError: another length or shape, or labels that are neither whole numbers nor strings.
    """
    labels = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if labels.shape != (length,):
        hint = " One-hot labels? Pass `labels.argmax(1)`." if labels.ndim == 2 else ""
        raise InputError(
            f"`{name}` must have one entry per row of `{of}`: expected shape ({length},), "
            f"got {labels.shape}.{hint}"
        )
    if labels.dtype.kind in "OT" and all(isinstance(x, str) for x in labels):
        labels = np.array(labels.tolist(), dtype=str)
    if labels.dtype.kind not in "iubUS":
        raise InputError(f"`{name}` must be whole numbers or strings, got {labels.dtype}.")
    return labels


def as_classes(query_labels: np.ndarray, gallery_labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The labels numbered 0 .. C-1 over both sets, int64.

    Raises:
        InputError: one set is labelled by numbers and the other by strings, so that no label could agree.
    """
    if gallery_labels is None:
        codes = np.unique(query_labels, return_inverse=True)[1].astype(np.int64)
        return codes, codes
    if (query_labels.dtype.kind in "US") != (gallery_labels.dtype.kind in "US"):
        raise InputError(
            f"`query_labels` ({query_labels.dtype}) and `gallery_labels` ({gallery_labels.dtype}) must both "
            "be numbers or both be strings: as they are, no two labels are equal."
        )
    # Not through one concatenated array of numbers: int64 and uint64 would meet in float64 and lose digits.
    both = [x.astype(object) if x.dtype == np.uint64 else x for x in (query_labels, gallery_labels)]
    codes = np.unique(np.concatenate(both), return_inverse=True)[1].astype(np.int64)
    return codes[: len(query_labels)], codes[len(query_labels) :]

"""Checkpoints that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deepmetric.atomic import write_atomically
from deepmetric.errors import InputError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, containers of these) to ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda beside: torch.save(state, beside))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, onto the CPU; nothing but plain data is unpickled.

    Raises:
        InputError: if the file is missing or cannot be read.
    """
    if not path.is_file():
        raise InputError(
            f"there is no checkpoint at {path}: the run stopped before it wrote one. Start it anew."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}). Put back a copy of it, or remove "
            "it: without it --resume begins the run again."
        ) from error

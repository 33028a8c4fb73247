"""Where to compute when nobody says."""

from __future__ import annotations


def best_device() -> str:
    """``"cuda"`` where there is such a GPU, else Apple's ``"mps"``, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

"""deepmetric: learn a metric from labelled items, measure it on unseen classes, search with it.

Importing the package is cheap: each part loads when it is first used, and ``deepmetric.losses`` needs torch alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepmetric.models.load import load as load

__version__ = "0.1.0"

_LAZY = {"load": "deepmetric.models.load"}
_PARTS = ("data", "evaluation", "losses", "models", "search", "training")


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _PARTS:
        return import_module(f"deepmetric.{name}")
    raise AttributeError(f"module 'deepmetric' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_PARTS])

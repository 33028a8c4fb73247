"""Batches that every loss must survive, and random ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    """``random_batch(seed, n=10, d=4, classes=3, copies=0)``: float64 rows of any norm, and labels.

    The last ``copies`` rows are exact copies of earlier ones, under their own labels.
    """

    def make(seed: int, n: int = 10, d: int = 4, classes: int = 3, copies: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
        labels = torch.randint(classes, (n,), generator=generator) * 7 - 3
        for copy in range(min(copies, n - 1)):
            rows[n - 1 - copy] = rows[torch.randint(n - 1, (1,), generator=generator)]
        return rows, labels

    return make


@pytest.fixture(
    params=["one class", "all singletons", "one anchor", "no rows", "duplicates", "zero row", "equal rows"]
)
def awkward_batch(request: pytest.FixtureRequest, random_batch: Callable[..., Batch]) -> Batch:
    """Batches in which some side of the loss is missing or a derivative is not defined."""
    rows, labels = random_batch(3)
    changed = {
        "one class": lambda: (rows, torch.zeros_like(labels)),
        "all singletons": lambda: (rows, torch.arange(10)),
        "one anchor": lambda: (rows[:1], labels[:1]),
        "no rows": lambda: (rows[:0], labels[:0]),
        "duplicates": lambda: (torch.cat([rows, rows]), torch.cat([labels, labels.flip(0)])),
        "zero row": lambda: (torch.cat([rows, torch.zeros(2, 4, dtype=torch.float64)]), torch.arange(12) % 3),
        "equal rows": lambda: (torch.ones(6, 4, dtype=torch.float64), torch.arange(6) % 2),
    }
    return changed[request.param]()


@pytest.fixture(scope="session")
def dense_losses() -> ModuleType:
    """The module dense.py of this folder (tests are no package, so it cannot be imported by name)."""
    spec = importlib.util.spec_from_file_location("dense_losses", Path(__file__).with_name("dense.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

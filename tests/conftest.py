"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

# No test may wait for a model hub: a try to reach it fails at once instead of after 47 s of retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

# Under pytest-xdist each worker has one core; more threads a worker only fight each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

SHARED = Path(os.environ.get("DEEPMETRIC_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that developers and CI have beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set DEEPMETRIC_SHARED to the folder that holds data/)")
    return folder

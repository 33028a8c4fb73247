"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

# No test may wait for a model hub: a try to reach it fails at once instead of after 47 s of retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
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


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in the layout root/class/image: 30 classes of gratings, 8 images of 20 x 20 each.

    A class is an angle and a frequency; images of a class differ by phase, colour and noise.
    """
    from PIL import Image

    root = tmp_path_factory.mktemp("gratings")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:20, 0:20] / 20
    for label in range(30):
        angle, frequency = generator.uniform(0, np.pi), generator.uniform(1, 5)
        folder = root / f"class_{label:02}"
        folder.mkdir()
        for instance in range(8):
            phase, colour = generator.uniform(0, 2 * np.pi), generator.uniform(0.3, 1, 3)
            wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            image = (wave[..., None] + 1) / 2 * colour + generator.normal(0, 0.1, (20, 20, 3))
            Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"{instance}.png")
    return root

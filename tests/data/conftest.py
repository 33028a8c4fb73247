"""Small files to read, and a cache for the glyphs that is not the developer's."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_images() -> Callable[[Path, Iterable[str]], Path]:
    """Write a 6 x 5 image of its own colour for every name under a root."""

    def write(root: Path, names: Iterable[str]) -> Path:
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (number % 256, number // 256 % 256, 77)
            Image.new("RGB", (6, 5), colour).save(path, "PNG")
        return root

    return write


@pytest.fixture
def zipped() -> Callable[[Path], Path]:
    """Pack a folder into a zip beside it, folders as entries of their own."""

    def pack(folder: Path) -> Path:
        archive = folder.with_suffix(".zip")
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder))
        return archive

    return pack


@pytest.fixture
def noise_tree(tmp_path: Path) -> Path:
    """Three classes of four 40 x 40 noise images: large enough that a wrong read shows."""
    rng = np.random.default_rng(0)
    root = tmp_path / "noise"
    for name in ("a", "b", "c"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory: pytest.TempPathFactory):
    """The environment's cache folder is a temporary one for the whole session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPMETRIC_CACHE", str(folder))
        yield folder

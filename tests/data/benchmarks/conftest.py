"""Copies of the benchmarks in their original layouts and at full count, their images empty stubs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from deepmetric.data.files import FolderFiles


def touch(root: Path, names: Iterable[str]) -> None:
    """Empty files of these names."""
    made: set[str] = set()
    for name in names:
        folder = name.rpartition("/")[0]
        if folder not in made:
            (root / folder).mkdir(parents=True, exist_ok=True)
            made.add(folder)
        os.close(os.open(root / name, os.O_CREAT | os.O_WRONLY))


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def dealt(items: int, classes: int) -> list[int]:
    """The class (from 0) of each of the items, in order, as evenly as it goes."""
    return [item * classes // items for item in range(items)]


@pytest.fixture
def stub_listing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, set[str]], None]:
    """Let a folder seem to hold every image but some: hundreds of thousands of files would take the test's time."""
    really = FolderFiles.present

    def seem(folder: Path, missing: set[str]) -> None:
        def present(self: FolderFiles, names: Sequence[str]) -> list[bool]:
            if self.root != folder or not all(name.lower().endswith(".jpg") for name in names):
                return really(self, names)
            return [name not in missing for name in names]

        monkeypatch.setattr(FolderFiles, "present", present)

    return seem


def jpeg(seed: int) -> bytes:
    """A small image of its own."""
    file = BytesIO()
    Image.effect_noise((24, 20), 20 + seed % 80).convert("RGB").save(file, "JPEG")
    return file.getvalue()

"""The embedded data set: a thousand characters, drawn from fonts that are installed anyway."""

from __future__ import annotations

import json
import warnings
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from deepmetric.data.cache import cache_folder, replacing
from deepmetric.data.dataset import Dataset
from deepmetric.data.glyph_set import CODEPOINTS
from deepmetric.data.splits import ClassSplit, item_splits
from deepmetric.errors import InputError

VERSION = 1  # of the drawing: a change of glyph_drawing.py that changes pixels counts it up


class GlyphsDataset(Dataset):
    """Characters from the fonts inside matplotlib: one class a character, no download.

    Instances of a character differ by font face, size, slant, rotation, stroke weight, elastic deformation, contrast
    and noise. The characters were chosen by ``scripts/choose_glyphs.py`` so that no two have nearly the same shape.
    Made in seconds at first use, then kept in the cache folder (``$DEEPMETRIC_CACHE``, ``$XDG_CACHE_HOME/deepmetric``
    or ``~/.cache/deepmetric``).

    Ids are ``U+0416/07``: code point and instance. Images are grey, as three equal channels.

    Args:
        instances: images a character, at least 1.
        size: width and height in pixels, at least 8.
        seed: of the drawing. An image depends on (seed, character, instance, size) alone.
        split: how characters are dealt to the splits; None is ``ClassSplit()``: 60% train, 15% val, 25% test.
        skip_unreadable: taken so that sources can be exchanged; a glyph is never unreadable.
    """

    def __init__(
        self,
        instances: int = 20,
        size: int = 32,
        seed: int = 0,
        *,
        split: ClassSplit | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        if instances < 1 or size < 8 or seed < 0:
            raise InputError(
                f"GlyphsDataset: instances={instances} must be at least 1, size={size} at least 8, "
                f"seed={seed} at least 0"
            )
        classes = [f"U+{codepoint:04X}" for codepoint in CODEPOINTS]
        ids = [f"{name}/{instance:02d}" for name in classes for instance in range(instances)]
        labels = np.repeat(np.arange(len(classes)), instances)
        super().__init__(ids, labels, classes, item_splits(labels, classes, None, split))
        self._images = _cached(instances, size, seed)

    def load(self, row: int) -> Tensor:
        return torch.from_numpy(self._images[row]).expand(3, -1, -1).clone()


def _cached(instances: int, size: int, seed: int) -> np.ndarray:
    """uint8 [characters * instances, size, size], from the cache or drawn and put there."""
    from deepmetric.data.glyph_drawing import FACES, draw, font_folder

    fonts = sha256()
    for face in FACES:
        fonts.update((font_folder() / f"{face}.ttf").read_bytes())
    described = json.dumps([VERSION, CODEPOINTS, fonts.hexdigest()])
    digest = sha256(described.encode()).hexdigest()[:12]
    path = cache_folder() / "glyphs" / f"{instances}x{size}px-seed{seed}-{digest}.npz"
    shape = (len(CODEPOINTS) * instances, size, size)
    images = _read(path, shape)
    if images is None:
        images = draw(CODEPOINTS, instances, size, seed)
        try:
            with replacing(path) as file:
                np.savez(file, images=images)
        except OSError as error:  # a read-only home must not stop a run that has its data
            warnings.warn(f"cannot keep the glyphs in {path}: {error}", stacklevel=3)
    return images


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached images; None when there are none or the file is damaged (the zip's checksum tells)."""
    try:
        with np.load(path) as stored:
            images = stored["images"]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None

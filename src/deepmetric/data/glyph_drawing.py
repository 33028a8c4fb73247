"""Drawing characters from the fonts that ship inside matplotlib, each instance deformed in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFont
from torch import Tensor
from tqdm import tqdm

UNICODE_FACES = (
    *(
        f"DejaVu{family}{style}"
        for family in ("Sans", "SansMono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
# Computer Modern's encoding is TeX's: only letters and digits are where Unicode has them, and in the maths italic only
# letters (its digits are old-style figures).
TEX_FACES = ("cmr10", "cmss10", "cmtt10", "cmti10", "cmb10", "cmmi10")
ALPHANUMERIC = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
FACES = UNICODE_FACES + TEX_FACES

OVERSAMPLING = 2
GLYPH_SHARE = 0.75  # the glyph's longer side, as a share of the canvas it is first drawn on
CHUNK = 1024


def font_folder() -> Path:
    """The folder of matplotlib's TrueType fonts."""
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf"


@cache
def characters_of(face: str) -> frozenset[int]:
    """The code points that ``face`` really shows."""
    from matplotlib.ft2font import FT2Font

    there = frozenset(FT2Font(str(font_folder() / f"{face}.ttf")).get_charmap())
    if face in TEX_FACES:
        there &= ALPHANUMERIC
    if face == "cmmi10":
        there -= frozenset(b"0123456789")
    return there


@cache
def font(face: str, pixels: int) -> ImageFont.FreeTypeFont:
    """``face`` at a height of ``pixels``, in the plain layout that every build of PIL has."""
    path = str(font_folder() / f"{face}.ttf")
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


def outline(face: str, codepoint: int, canvas: int, share: float = GLYPH_SHARE) -> np.ndarray | None:
    """One character, its ink centred and its longer side scaled to ``share`` of the canvas.

    Position and size are taken away because an instance has its own: ``-`` and ``_``, ``c`` and ``C`` come out alike.

    Returns:
        uint8 [canvas, canvas], 255 = ink; None for a blank.
    """
    mask = font(face, canvas).getmask(chr(codepoint), mode="L")
    width, height = mask.size
    ink = np.array(mask, dtype=np.uint8).reshape(height, width)
    rows, columns = np.flatnonzero(ink.max(1, initial=0) > 63), np.flatnonzero(ink.max(0, initial=0) > 63)
    if not len(rows):
        return None
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = share * canvas / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    scaled = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    drawn = np.zeros((canvas, canvas), dtype=np.uint8)
    top, left = (canvas - height) // 2, (canvas - width) // 2
    drawn[top : top + height, left : left + width] = np.asarray(scaled)
    return drawn


class Manner(NamedTuple):
    """How one instance is drawn; all random, all from (seed, codepoint, instance)."""

    face: str
    matrix: np.ndarray  # float32 [2, 3], from the output's coordinates in [-1, 1] to the drawing's
    elastic: np.ndarray  # float32 [2, 4, 4], displacements of a coarse grid, same coordinates
    weight: float  # in [-1, 1]: strokes thinner .. bolder
    ink: float  # grey values 0-255
    paper: float
    noise: np.ndarray  # float32 [size, size], grey values


def manner(codepoint: int, instance: int, size: int, seed: int) -> Manner:
    """The manner of one instance, from a random stream of its own."""
    rng = np.random.default_rng([seed, codepoint, instance])
    faces = [face for face in FACES if codepoint in characters_of(face)]
    face = faces[int(rng.random() * len(faces))]
    scale_x, scale_y = rng.uniform(0.85, 1.35) * np.exp(rng.uniform(-0.15, 0.15, 2))
    angle, slant = rng.uniform(-0.25, 0.25), rng.uniform(-0.35, 0.35)
    shift = rng.uniform(-0.15, 0.15, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1.0, slant], [0.0, 1.0]]) @ np.diag([scale_x, scale_y])
    return Manner(
        face=face,
        matrix=np.concatenate([linear, shift[:, None]], axis=1).astype(np.float32),
        elastic=(0.07 * rng.standard_normal((2, 4, 4))).astype(np.float32),
        weight=rng.uniform(-0.7, 1.0),
        ink=rng.uniform(0, 100),
        paper=rng.uniform(155, 255),
        noise=(rng.uniform(2, 25) * rng.standard_normal((size, size))).astype(np.float32),
    )


def draw(codepoints: Sequence[int], instances: int, size: int, seed: int) -> np.ndarray:
    """Grey images, dark on light, of every instance of every character: uint8 [characters * instances, size, size]."""
    order = [(codepoint, instance) for codepoint in codepoints for instance in range(instances)]
    made = np.empty((len(order), size, size), dtype=np.uint8)
    for start in tqdm(range(0, len(order), CHUNK), "drawing glyphs", leave=False, disable=None):
        part = order[start : start + CHUNK]
        manners = [manner(codepoint, instance, size, seed) for codepoint, instance in part]
        drawings: dict[tuple[str, int], np.ndarray] = {}
        for (codepoint, _), how in zip(part, manners):
            if (how.face, codepoint) not in drawings:
                drawn = outline(how.face, codepoint, OVERSAMPLING * size)
                assert drawn is not None, f"U+{codepoint:04X} is blank in {how.face}"
                drawings[how.face, codepoint] = drawn
        stack = np.stack([drawings[how.face, codepoint] for (codepoint, _), how in zip(part, manners)])
        made[start : start + len(part)] = _deform(stack, manners).numpy()
    return made


def _deform(drawings: np.ndarray, manners: list[Manner]) -> Tensor:
    ink = torch.from_numpy(drawings)[:, None].float() / 255  # [B, 1, 2 size, 2 size]
    weight = torch.tensor([how.weight for how in manners])[:, None, None, None]
    bolder, thinner = F.max_pool2d(ink, 3, 1, 1), -F.max_pool2d(-ink, 3, 1, 1)
    ink = torch.lerp(ink, torch.where(weight > 0, bolder, thinner), weight.abs())
    grid = F.affine_grid(_stack(manners, "matrix"), list(ink.shape), align_corners=False)
    elastic = F.interpolate(_stack(manners, "elastic"), ink.shape[-2:], mode="bicubic", align_corners=True)
    ink = F.grid_sample(ink, grid + elastic.permute(0, 2, 3, 1), align_corners=False)
    ink = F.avg_pool2d(ink, OVERSAMPLING)[:, 0]  # [B, size, size]
    dark, light = (
        torch.tensor([getattr(how, name) for how in manners])[:, None, None] for name in ("ink", "paper")
    )
    grey = torch.lerp(light, dark, ink) + _stack(manners, "noise")
    return grey.round().clamp(0, 255).to(torch.uint8)


def _stack(manners: list[Manner], name: str) -> Tensor:
    return torch.from_numpy(np.stack([getattr(how, name) for how in manners]))

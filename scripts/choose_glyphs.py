"""Choose the characters of the `glyphs` data set: python scripts/choose_glyphs.py > src/deepmetric/data/glyph_set.py

Every letter, number, punctuation mark and symbol that at least two of four upright families show is a candidate.
Candidates are compared by shape, never by name: drawn to one size, centred, blurred, and correlated in each family that
has both, the largest value over small changes of stroke weight, stretch, slant and position, because the instances of
one character differ by these. Characters in more families come first, then letters and digits, then lower code points;
one is taken when it correlates with none of those taken above LIMIT. Left out as well are blanks and characters of
which some face shows another shape than the rest (AGREEMENT). So Greek Beta and Cyrillic Ve go (1.0 to Latin B), so do
c beside C, F beside E, the slash beside the bar, and accents that differ in a few pixels, while B, b, d and e stay.
Takes some minutes.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepmetric.data.glyph_drawing import FACES, characters_of, outline

FAMILIES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
LIMIT = 0.88
AGREEMENT = 0.5
SIDE = 32
SHIFTS = (-2, 0, 2)  # of SIDE
VARIANTS = list(product((1, 3), (0.7, 1.0, 1.4), (-0.3, 0.0, 0.3)))  # stroke weight, stretch, slant
AS_DRAWN = [(1, 1.0, 0.0)]
TEMPLATE = '''"""The {count} characters of the glyphs data set.

Made by scripts/choose_glyphs.py, which says how they were chosen.
"""

from __future__ import annotations

# Hexadecimal, and not the characters themselves: many are written from right to left or are missing in editors' fonts.
_RANGES = """
{lines}
"""


def _codepoints(ranges: str) -> list[int]:
    ends = [[int(end, 16) for end in part.split("-")] for part in ranges.split()]
    return [codepoint for end in ends for codepoint in range(end[0], end[-1] + 1)]


CODEPOINTS = _codepoints(_RANGES)'''
# Told apart by where the dots are, not by shape; and areas with a meaning of their own in each font.
LEFT_OUT = (range(0x2800, 0x2900), range(0xE000, 0xF900))


def candidates() -> list[int]:
    families = {
        c: sum(c in characters_of(face) for face in FAMILIES)
        for face in FAMILIES
        for c in characters_of(face)
    }
    usable = [
        c
        for c, count in families.items()
        if count >= 2
        and unicodedata.category(chr(c))[0] in "LNPS"
        and not any(c in area for area in LEFT_OUT)
    ]
    return sorted(usable, key=lambda c: (-families[c], unicodedata.category(chr(c))[0] not in "LN", c))


def correlation(outlines: Sequence[np.ndarray], variants: Sequence[tuple[int, float, float]]) -> Tensor:
    """Largest correlation of each two drawings when one is emboldened, stretched, slanted or moved a little.

    These are what the data set's instances vary by themselves, so none of them may be all that tells two classes apart.

    Returns:
        float32 [N, N], symmetric.
    """
    shapes = F.avg_pool2d(torch.from_numpy(np.stack(outlines)).float()[:, None], 2)
    still = _features(shapes)
    best = torch.full((len(outlines), len(outlines)), -1.0)
    for weight, stretch, slant in variants:
        bold = F.max_pool2d(shapes, weight, 1, weight // 2)
        # The area is kept: a stretch by s is one of sqrt(s) across and 1 / sqrt(s) down.
        matrix = torch.tensor([[stretch**-0.5, slant, 0.0], [0.0, stretch**0.5, 0.0]])
        grid = F.affine_grid(matrix.expand(len(shapes), 2, 3), list(shapes.shape), align_corners=False)
        varied = F.grid_sample(bold, grid, align_corners=False)
        for down, right in product(SHIFTS, SHIFTS):
            torch.maximum(best, still @ _features(torch.roll(varied, (down, right), (2, 3))).T, out=best)
    return torch.maximum(best, best.T)


def _features(shapes: Tensor) -> Tensor:
    tap = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    blurred = F.conv2d(shapes, (tap[:, None] * tap)[None, None], padding=2)
    flat = F.avg_pool2d(blurred, 2).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def similarity(codepoints: Sequence[int], variants: Sequence[tuple[int, float, float]]) -> Tensor:
    """Largest correlation of two characters over the families: float32 [N, N]; -1 where no family has both."""
    largest = torch.full((len(codepoints), len(codepoints)), -1.0)
    for face in FAMILIES:
        there = [i for i, c in enumerate(codepoints) if c in characters_of(face)]
        near = correlation([drawn(face, codepoints[i]) for i in there], variants)
        rows = torch.tensor(there)
        largest[rows[:, None], rows] = torch.maximum(largest[rows[:, None], rows], near)
    return largest


def agreement(codepoint: int) -> float:
    """How well its faces agree on a character's shape: the least of their median correlations to the rest."""
    faces = [face for face in FACES if codepoint in characters_of(face)]
    outlines = [outline(face, codepoint, 2 * SIDE) for face in faces]
    if any(one is None for one in outlines):
        return 0.0
    near = correlation([one for one in outlines if one is not None], AS_DRAWN)
    near.fill_diagonal_(float("nan"))
    return float(near.nanmedian(1).values.min())


def drawn(face: str, codepoint: int) -> np.ndarray:
    ink = outline(face, codepoint, 2 * SIDE)
    assert ink is not None, f"U+{codepoint:04X} is blank in {face}"
    return ink


def choose() -> list[int]:
    codepoints = [c for c in candidates() if agreement(c) >= AGREEMENT]
    near = similarity(codepoints, VARIANTS).numpy()
    taken: list[int] = []
    for i in range(len(codepoints)):
        if not taken or near[i, taken].max() <= LIMIT:
            taken.append(i)
    return sorted(codepoints[i] for i in taken)


def as_ranges(codepoints: Sequence[int]) -> str:
    """``41-43 61``: hexadecimal, neighbours joined."""
    cuts = [i for i in range(1, len(codepoints)) if codepoints[i] != codepoints[i - 1] + 1]
    runs = [(codepoints[a], codepoints[b - 1]) for a, b in zip([0, *cuts], [*cuts, len(codepoints)])]
    return " ".join(f"{first:X}" if first == last else f"{first:X}-{last:X}" for first, last in runs)


def main() -> None:
    codepoints = choose()
    lines = "\n".join(textwrap.wrap(as_ranges(codepoints), 106, break_on_hyphens=False))
    print(TEMPLATE.format(count=len(codepoints), lines=lines))


if __name__ == "__main__":
    main()

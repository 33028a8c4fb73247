"""What is done to an image before the backbone sees it, kept with the model so that it is never done differently."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deepmetric.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalisation of one model.

    Attributes:
        size: side of the square that the backbone gets, in pixels.
        resize: length that the image's shorter side is brought to before the crop; at least ``size``.
        mean, std: per channel (RGB), for pixels scaled to [0, 1]. ``mean=(1, 1, 1), std=(-1, -1, -1)`` turns drawings
            dark on light into light on dark: (x - 1) / -1 = 1 - x.
        interpolation: nearest, nearest-exact, bilinear or bicubic; the last two are antialiased.
        bgr: the backbone wants the channels reversed, as networks from Caffe do; mean and std stay those of R, G, B.

    Raises:
        InputError: a size below 1, ``resize`` below ``size``, not three means or stds, a zero std, an unknown
            interpolation.
    """

    size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    bgr: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size is {self.size}; expected the side of the input in pixels, at least 1")
        if self.resize < self.size:
            raise InputError(
                f"resize {self.resize} is smaller than size {self.size}, which is cropped out of it; "
                f"give resize: {self.size} or more, or leave it out"
            )
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3:
                raise InputError(f"{name} has {len(values)} values; expected 3, one for each of R, G, B")
            object.__setattr__(self, name, values)
        if 0.0 in self.std:
            raise InputError(f"std {list(self.std)} has a zero, and pixels are divided by it")
        if not all(map(math.isfinite, self.mean + self.std)):
            raise InputError(f"mean {list(self.mean)} and std {list(self.std)} must be finite numbers")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}."
                f"{did_you_mean(self.interpolation, INTERPOLATIONS)}"
            )

    def override(
        self,
        size: int | None = None,
        resize: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str | None = None,
        bgr: bool | None = None,
    ) -> Preprocessing:
        """These settings with the given ones in their place; ``size`` alone keeps the crop's share of the image."""
        new = {
            "size": size,
            "resize": resize,
            "mean": mean,
            "std": std,
            "interpolation": interpolation,
            "bgr": bgr,
        }
        if size is not None and resize is None:
            new["resize"] = round(size * self.resize / self.size)
        return replace(self, **{name: value for name, value in new.items() if value is not None})

    def transform(self) -> Transform:
        """The v2 transform uint8 [3, H, W] -> uint8 [3, size, size]: shorter side to ``resize``, centre crop.

        Normalisation is not part of it: the model does that itself, so that whole bytes travel between processes.
        """
        from torchvision.transforms import InterpolationMode, v2

        mode = InterpolationMode(self.interpolation)
        return v2.Compose([v2.Resize(self.resize, mode, antialias=True), v2.CenterCrop(self.size)])


IMAGENET = Preprocessing(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""For a backbone that does not say what it wants."""

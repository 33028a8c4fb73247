"""Image files of every common kind -> one form: uint8 [3, H, W] RGB, upright."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from deepmetric.errors import InputError

# Which files of a folder are images; what a file really holds is told by its content.
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
)


# How a data set is made without the files that cannot be read, for error messages.
LEAVE_OUT = "--skip_unreadable (embed, index, evaluate), data.skip_unreadable: true in a recipe"


class UnreadableImage(InputError):
    """An image file that cannot be decoded; ``path`` and ``reason`` say which and why.

    It is built from the message alone, because that is how worker processes hand errors over.
    """

    def __init__(self, message: str, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


def unreadable(path: str, reason: str) -> UnreadableImage:
    """The error for ``path``, with its cure."""
    return UnreadableImage(
        f"cannot read the image {path}: {reason}. Mend or remove the file, or leave such files out: {LEAVE_OUT}",
        path,
        reason,
    )


def decode(source: bytes | str | Path, path: str = "") -> Tensor:
    """An image as uint8 [3, H, W] RGB in 0-255, EXIF rotation applied.

    Grey is repeated over the three channels, transparency is laid on white, CMYK is converted, 16 bits are scaled to
    8, of an animation the first frame is taken. The content decides what a file is, not its extension.

    Args:
        source: the file's bytes, or its path.
        path: what to call the bytes in an error message.

    Raises:
        UnreadableImage: missing, truncated, no image at all, or of a kind with no fixed range (32-bit, signed, float).
    """
    if not isinstance(source, bytes):
        path = path or str(source)
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise unreadable(path, error.strerror or str(error)) from error
    if source[:2] == b"\xff\xd8" and (image := _plain_jpeg(source)) is not None:
        return image
    try:
        return _any_format(source)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise whatever the broken bytes lead them to
        reason = "the file is empty" if not source else str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is no image" if source else reason  # PIL would name a BytesIO object
        raise unreadable(path or "(bytes)", reason) from error


def _plain_jpeg(source: bytes) -> Tensor | None:
    """RGB and grey JPEG by torchvision; None for the rest (CMYK, broken), which PIL converts or explains."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:  # announced by torchvision 0.29 for a later release
        return None

    buffer = torch.from_numpy(np.frombuffer(source, dtype=np.uint8).copy())
    try:
        image = cast(Tensor, decode_jpeg(buffer, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True))
    except RuntimeError:
        return None
    if image.shape[0] == 1:
        return image.repeat(3, 1, 1)
    return image if image.shape[0] == 3 else None


def _any_format(source: bytes) -> Tensor:
    with Image.open(BytesIO(source)) as file:
        file.load()
        image = _upright(file)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image, file.format)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # the layout in memory in which v2 resizes fastest


def _upright(file: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(file)
    except Exception:  # a broken EXIF block says nothing; the pixels were read without it
        return file.copy()


def of_16_bits(image: Image.Image, format: str | None) -> bool:
    """Whether pixels are of 16 unsigned bits. PIL's mode I is 32 bits, but what it makes of a PNG's or a PGM's 16."""
    return image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM"))


def _to_8_bits(image: Image.Image, format: str | None) -> Image.Image:
    if not of_16_bits(image, format):
        raise ValueError(
            f"its pixels (mode {image.mode}) have no fixed range; save it with 8 or 16 unsigned bits a channel"
        )
    values = np.asarray(image)
    # 65535 / 255 = 257; PIL's own conversion would clip everything above 255 to white.
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))

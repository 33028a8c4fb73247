"""Whatever a user calls an image -> uint8 [3, H, W]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deepmetric.errors import InputError

if TYPE_CHECKING:
    from deepmetric.data.dataset import Dataset

ImageLike: TypeAlias = str | PathLike[str] | Image.Image | np.ndarray
EmbedInput: TypeAlias = "ImageLike | Iterable[ImageLike] | Dataset"


class Images:
    """The images of an ``embed`` call, by position, decoded when asked for.

    One image alone counts as a list of one; a :class:`deepmetric.data.Dataset` is read without its transform, because
    the model brings its own.
    """

    def __init__(self, inputs: EmbedInput) -> None:
        from deepmetric.data.dataset import Dataset

        self._dataset = inputs if isinstance(inputs, Dataset) else None
        self._items: Sequence[ImageLike] = []
        if self._dataset is None:
            self._items = [inputs] if _is_one_image(inputs) else list(inputs)  # type: ignore[list-item, arg-type]
            counts = Counter(map(id, self._items))
            for item in self._items:
                # PIL reads its file when first asked, which two threads must not do together.
                if isinstance(item, Image.Image) and counts[id(item)] > 1:
                    with suppress(Exception):  # `read` says for which item
                        item.load()

    def __len__(self) -> int:
        return len(self._items) if self._dataset is None else len(self._dataset)

    def read(self, i: int) -> Tensor:
        """Image i, uint8 [3, H, W] RGB."""
        return to_rgb(self._items[i], i) if self._dataset is None else self._dataset.read(i)


def to_rgb(image: ImageLike, position: int = 0) -> Tensor:
    """A path, PIL image or uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] as uint8 [3, H, W] RGB.

    Grey is repeated over the channels, transparency is laid on white, EXIF rotation is applied: what
    :func:`deepmetric.data.images.decode` does to a file is done to all.

    Raises:
        InputError: anything else; the message names the item's ``position``.
        UnreadableImage: a path to something that is no image.
    """
    from deepmetric.data.images import decode

    if isinstance(image, (str, PathLike)):
        return decode(str(image))
    if isinstance(image, Image.Image):
        try:
            return _from_pil(image)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # PIL's decoders raise whatever the broken bytes lead them to
            raise InputError(f"item {position}, a PIL image, cannot be read: {error}") from error
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"item {position} is a {type(image).__name__}; expected a path, a PIL image or a uint8 array [H, W, 3]"
        )
    if image.dtype != np.uint8:
        raise InputError(f"item {position} is an array of {image.dtype}; expected uint8 with values 0 to 255")
    if 0 in image.shape:
        raise InputError(f"item {position} is an array of shape {image.shape}; expected at least one pixel")
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        return torch.from_numpy(image.reshape(1, *image.shape[:2]).copy()).expand(3, -1, -1)
    if image.ndim == 3 and image.shape[2] == 3:
        return torch.from_numpy(image.copy()).permute(2, 0, 1)
    if image.ndim == 3 and image.shape[2] == 4:
        return _from_pil(Image.fromarray(image))
    hint = (
        "; it looks like [3, H, W]: turn it with .transpose(1, 2, 0)"
        if image.shape[:1] in ((1,), (3,))
        else ""
    )
    raise InputError(
        f"item {position} is an array of shape {image.shape}; expected [H, W], [H, W, 3] or [H, W, 4]{hint}"
    )


def _from_pil(image: Image.Image) -> Tensor:
    from deepmetric.data.images import decode, of_16_bits

    format = image.format or "PNG"  # made in memory it has none
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    # The rules for all other modes are decode's; TIFF carries each of them, but a palette's transparency only as RGBA,
    # and of 16 bits one order of bytes.
    if of_16_bits(image, format):
        values = np.asarray(image)
        if values.min() >= 0 and values.max() <= 65535:
            image = Image.fromarray(values.astype(np.uint16))
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "P", "I", "I;16", "F", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    file = BytesIO()
    image.save(file, "TIFF")
    return decode(file.getvalue(), f"PIL image of mode {image.mode}")


def _is_one_image(inputs: object) -> bool:
    if isinstance(inputs, np.ndarray):
        return inputs.ndim != 4
    return isinstance(inputs, (str, PathLike, Image.Image))

"""Every kind of file comes out as the same thing: uint8 [3, H, W] RGB, upright."""

from __future__ import annotations

import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from deepmetric.data.images import UnreadableImage, decode
from deepmetric.errors import InputError

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (7, 9), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: bytes) -> np.ndarray:
    image = decode(source)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb(kind):
    assert (pixels(encoded(Image.fromarray(RGB), kind)) == RGB).all()


def test_webp():
    assert (pixels(encoded(Image.fromarray(RGB), "WEBP", lossless=True)) == RGB).all()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_grey_is_repeated(kind):
    assert (pixels(encoded(Image.fromarray(GREY), kind)) == GREY[..., None]).all()


def test_one_bit():
    image = Image.fromarray(GREY).convert("1")
    expected = np.asarray(image)[..., None] * np.uint8(255)
    assert (pixels(encoded(image, "PNG")) == expected).all()


def test_palette():
    image = Image.fromarray(RGB).quantize(16)
    assert (pixels(encoded(image, "PNG")) == np.asarray(image.convert("RGB"))).all()
    assert (pixels(encoded(image, "GIF")) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(kind):
    image = Image.fromarray(RGB).quantize(16)
    index = np.asarray(image)
    expected = np.asarray(image.convert("RGB")).copy()
    expected[index == 3] = 255
    assert (index == 3).any()
    assert (pixels(encoded(image, kind, transparency=3)) == expected).all()


def test_palette_with_alpha_for_each_colour():
    image = Image.fromarray(RGB).quantize(16)
    alphas = np.arange(0, 256, 17, dtype=np.uint8)
    expected = on_white(np.asarray(image.convert("RGB")), alphas[np.asarray(image)])
    got = pixels(encoded(image, "PNG", transparency=alphas.tobytes()))
    assert np.abs(got - expected).max() <= 1


def test_alpha_is_laid_on_white():
    rgba = np.dstack([RGB, ALPHA])
    assert np.abs(pixels(encoded(Image.fromarray(rgba), "PNG")) - on_white(RGB, ALPHA)).max() <= 1


def test_grey_with_alpha_is_laid_on_white():
    image = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))
    expected = on_white(np.repeat(GREY[..., None], 3, 2), ALPHA)
    assert np.abs(pixels(encoded(image, "PNG")) - expected).max() <= 1


def test_a_transparent_colour_of_an_rgb_png():
    colour = tuple(int(value) for value in RGB[2, 3])
    expected = RGB.copy()
    expected[(RGB[2, 3] == RGB).all(2)] = 255
    assert (pixels(encoded(Image.fromarray(RGB), "PNG", transparency=colour)) == expected).all()


def png_16(values: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG, which PIL cannot write in colour."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = RNG.integers(0, 65536, (7, 9), dtype=np.uint16)
    values[0, :4] = 0, 257, 65535, 32896
    got = pixels(png_16(values, 0))
    assert (got[..., 0] == np.round(values / 257)).all()
    assert (got == got[..., :1]).all()


def test_16_bit_colour_is_scaled():
    values = RNG.integers(0, 65536, (7, 9, 3), dtype=np.uint16)
    assert np.abs(pixels(png_16(values, 2)) - values / 257).max() <= 1


def test_16_bit_tiff():
    values = RNG.integers(0, 65536, (7, 9), dtype=np.uint16)
    assert (pixels(encoded(Image.fromarray(values), "TIFF"))[..., 0] == np.round(values / 257)).all()


def smooth(height=32, width=48) -> np.ndarray:
    """Blocks that survive JPEG, different in every corner."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 2] = 250, 30, 30
    image[: height // 2, width // 2 :] = 30, 200, 30
    image[height // 2 :, : width // 2] = 40, 40, 220
    image[height // 2 :, width // 2 :] = 200, 200, 200
    return image


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_pil(mode):
    source = encoded(Image.fromarray(smooth()).convert(mode), "JPEG", quality=90)
    expected = np.asarray(Image.open(BytesIO(source)).convert("RGB")).astype(int)
    assert np.abs(pixels(source) - expected).max() <= 2


def test_progressive_jpeg():
    source = encoded(Image.fromarray(smooth()), "JPEG", quality=95, progressive=True)
    assert (
        np.abs(pixels(source).astype(int) - smooth()).mean() < 5
    )  # chroma smears at edges; a wrong turn costs more than 60


def test_cmyk_jpeg():
    image = Image.fromarray(smooth()).convert("CMYK")
    source = encoded(image, "JPEG", quality=95)
    assert Image.open(BytesIO(source)).mode == "CMYK"
    assert (
        np.abs(pixels(source).astype(int) - smooth()).mean() < 5
    )  # chroma smears at edges; a wrong turn costs more than 60


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # stored turned left, shown turned right again
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_exif_rotation(orientation, kind, mode):
    upright = Image.fromarray(smooth()).convert(mode)
    stored = upright.transpose(TURNS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    got = pixels(source).astype(int)
    assert got.shape == (32, 48, 3)
    assert (
        np.abs(got - np.asarray(upright.convert("RGB"))).mean() < 5
    )  # chroma smears at edges; a wrong turn costs more than 60
    reference = ImageOps.exif_transpose(Image.open(BytesIO(source))).convert("RGB")
    assert np.abs(got - np.asarray(reference)).max() <= 2


def test_cmyk_jpeg_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(smooth()).convert("CMYK").transpose(TURNS[6])
    assert pixels(encoded(stored, "JPEG", exif=exif)).shape == (32, 48, 3)


def test_a_broken_exif_block_does_not_cost_the_image():
    source = encoded(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0nonsense")
    assert (pixels(source) == RGB).all()


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(frame).convert("P") for frame in (GREY, 255 - GREY)]
    source = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(source) == GREY[..., None]).all()


@pytest.mark.parametrize(
    ("kind", "name"), [("PNG", "image.jpg"), ("JPEG", "image.png"), ("GIF", "image.bmp")]
)
def test_content_decides_and_not_the_extension(tmp_path: Path, kind, name):
    source = encoded(Image.fromarray(smooth()), kind)
    (tmp_path / name).write_bytes(source)
    assert torch.equal(decode(tmp_path / name), decode(source))


BROKEN = {
    "truncated jpeg": encoded(Image.fromarray(smooth()), "JPEG")[:-200],
    "truncated png": encoded(Image.fromarray(RGB), "PNG")[:-60],
    "jpeg header alone": b"\xff\xd8\xff\xe0",
    "text": b"<html>404</html>",
    "empty": b"",
    "float pixels": encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "32-bit pixels": encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_name_path_and_cure(tmp_path: Path, source):
    path = tmp_path / "broken.jpg"
    path.write_bytes(source)
    with pytest.raises(UnreadableImage) as caught:
        decode(path)
    assert isinstance(caught.value, InputError)
    assert str(path) in str(caught.value)
    assert "--skip_unreadable (embed, index, evaluate)" in str(caught.value)
    assert "data.skip_unreadable: true in a recipe" in str(caught.value)
    assert caught.value.path == str(path)
    assert caught.value.reason
    assert "BytesIO" not in str(caught.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(UnreadableImage, match=r"none\.png: No such file"):
        decode(tmp_path / "none.png")


def test_the_error_survives_pickling():
    with pytest.raises(UnreadableImage) as caught:
        decode(b"", path="x.png")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is UnreadableImage
    assert (str(copy), copy.path, copy.reason) == (
        str(caught.value),
        "x.png",
        caught.value.reason,
    )

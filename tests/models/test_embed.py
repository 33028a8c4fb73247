"""``embed``: whatever is called an image, in order, whatever the batches."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepmetric.data import Dataset
from deepmetric.data.images import decode
from deepmetric.errors import InputError
from deepmetric.models import EmbeddingModel
from deepmetric.models.embed import forward_in_parts
from deepmetric.models.inputs import to_rgb


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    return EmbeddingModel(embedding_dim=16, size=32, resize=36)


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (int(h), int(w), 3), dtype=np.uint8) for h, w in rng.integers(20, 60, (70, 2))
    ]


class Memory(Dataset):
    def __init__(self, images: list[np.ndarray]) -> None:
        names = [str(i) for i in range(len(images))]
        super().__init__(names, np.arange(len(images)), names, np.array(["test"] * len(images)))
        self.images = images

    def load(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.images[row]).permute(2, 0, 1)


def test_equals_one_by_one_by_hand(model: EmbeddingModel, arrays: list[np.ndarray]) -> None:
    embeddings = model.embed(arrays[:5])
    assert embeddings.shape == (5, 16)
    assert embeddings.dtype == np.float32
    model.eval()
    for array, embedding in zip(arrays, embeddings):
        image = model.preprocessing.transform()(torch.from_numpy(array).permute(2, 0, 1))
        with torch.no_grad():
            np.testing.assert_allclose(model(image[None])[0].numpy(), embedding, atol=1e-6)


def test_batch_size_changes_neither_order_nor_values(model: EmbeddingModel, arrays: list[np.ndarray]) -> None:
    one_by_one = model.embed(arrays, batch_size=1)
    for batch_size in (7, 64, 70, 1000):
        np.testing.assert_allclose(model.embed(arrays, batch_size=batch_size), one_by_one, atol=1e-6)


def test_paths_pictures_arrays_and_datasets_agree(
    model: EmbeddingModel, arrays: list[np.ndarray], tmp_path: Path
) -> None:
    pictures = [Image.fromarray(array) for array in arrays[:4]]
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, picture in zip(paths, pictures):
        picture.save(path)
    expected = model.embed(arrays[:4])
    dataset = Memory(arrays[:4])
    for inputs in (
        paths,
        [str(path) for path in paths],
        pictures,
        dataset,
        iter(pictures),
        [*paths[:2], *arrays[2:4]],
    ):
        np.testing.assert_array_equal(model.embed(inputs), expected)
    # The dataset's own transform is another's; and a subset is embedded in its own order.
    upside_down = dataset.with_transform(lambda image: image.flip(1))
    np.testing.assert_array_equal(model.embed(upside_down), expected)
    np.testing.assert_allclose(model.embed(dataset.subset([3, 1])), expected[[3, 1]], atol=1e-6)


def test_one_alone_is_a_list_of_one(model: EmbeddingModel, arrays: list[np.ndarray], tmp_path: Path) -> None:
    picture = Image.fromarray(arrays[0])
    picture.save(tmp_path / "a.png")
    expected = model.embed(arrays[:1])
    assert expected.shape == (1, 16)
    for alone in (arrays[0], picture, tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(model.embed(alone), expected)
    grey = arrays[0][:, :, 0]
    np.testing.assert_array_equal(model.embed(grey), model.embed([np.stack([grey] * 3, axis=2)]))


def test_a_stack_of_images(model: EmbeddingModel) -> None:
    stack = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(model.embed(stack), model.embed(list(stack)))


def test_nothing(model: EmbeddingModel) -> None:
    assert model.embed([]).shape == (0, 16)
    assert model.embed([]).dtype == np.float32


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16"]
)
def test_pictures_of_every_mode(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    pixels[:4] = (255, 0, 0)
    picture = Image.fromarray(pixels)
    if mode in ("I", "I;16"):
        values = pixels[:, :, 1].astype(np.uint16) * 257
        picture = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
        expected = torch.from_numpy(pixels[:, :, 1]).expand(3, -1, -1)
    else:
        picture = picture.convert(mode)
        expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    assert picture.mode == mode
    assert torch.equal(to_rgb(picture), expected)


@pytest.mark.parametrize("kind", ["<u2", ">u2", "pgm"])
def test_pictures_of_16_bits_are_what_their_files_are(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (9, 8))
    path = tmp_path / ("a.pgm" if kind == "pgm" else "a.tif")
    if kind == "pgm":
        path.write_bytes(b"P5 8 9 65535\n" + values.astype(">u2").tobytes())
    else:
        mode = "I;16B" if kind == ">u2" else "I;16"
        Image.frombytes(mode, (8, 9), values.astype(kind).tobytes()).save(path)
    expected = torch.from_numpy((values + 128) // 257).to(torch.uint8).expand(3, -1, -1)
    assert torch.equal(decode(path), expected)
    with Image.open(path) as opened:
        assert torch.equal(to_rgb(opened), expected)


def test_one_picture_many_times(model: EmbeddingModel, tmp_path: Path) -> None:
    """Opened, not read: its file must not be read by several threads at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = model.embed(pixels)
    for _ in range(5):
        with Image.open(tmp_path / "a.png") as opened:
            rows = model.embed([opened] * 16)
        np.testing.assert_allclose(rows, expected.repeat(16, 0), atol=1e-6)


def test_a_broken_picture_is_named_by_its_place(model: EmbeddingModel, arrays: list[np.ndarray]) -> None:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(file, "JPEG")
    broken = Image.open(BytesIO(file.getvalue()[:2000]))
    with pytest.raises(InputError, match="item 1, a PIL image, cannot be read: image file is truncated"):
        model.embed([arrays[0], broken, broken])


def test_transparency_is_laid_on_white_in_every_form(tmp_path: Path) -> None:
    pixels = np.zeros((6, 6, 4), dtype=np.uint8)
    pixels[:3, :, 3] = 255  # the upper half is opaque black, the lower half is transparent
    expected = torch.full((3, 6, 6), 255, dtype=torch.uint8)
    expected[:, :3] = 0
    picture = Image.fromarray(pixels)
    palette = Image.fromarray((pixels[:, :, 3] > 0).astype(np.uint8), "P")
    palette.putpalette([9, 9, 9, 0, 0, 0])
    palette.info["transparency"] = 0
    picture.save(tmp_path / "a.png")
    for form in (pixels, picture, picture.convert("LA"), palette, tmp_path / "a.png"):
        assert torch.equal(to_rgb(form), expected)


def test_a_rotated_photograph_is_turned_as_its_file_is(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert to_rgb(opened).shape == (3, 16, 8)
        assert torch.equal(to_rgb(opened), decode(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "item 1 is an array of float32; expected uint8"),
        (np.zeros((3, 40, 40), np.uint8), r"shape \(3, 40, 40\).*it looks like \[3, H, W\]"),
        (np.zeros((0, 40, 3), np.uint8), r"item 1 .*\(0, 40, 3\); expected at least one pixel"),
        (np.zeros((4, 40, 40), np.uint8), r"item 1 is an array of shape \(4, 40, 40\); expected"),
        (torch.zeros(3, 4, 4), "item 1 is a Tensor; expected a path"),
        (None, "item 1 is a NoneType"),
        ("no/such/file.jpg", "no/such/file.jpg"),
    ],
)
def test_refuses(model: EmbeddingModel, arrays: list[np.ndarray], item: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.embed([arrays[0], item])  # type: ignore[list-item]


def test_batch_size_below_one(model: EmbeddingModel) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        model.embed([], batch_size=0)


def test_modes_are_put_back(arrays: list[np.ndarray]) -> None:
    model = EmbeddingModel(embedding_dim=4)
    model.backbone.eval()  # a user's own choice
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    embeddings = model.embed(arrays[:3])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(InputError):
        model.embed([arrays[0], "no/such/file.jpg"])
    assert [module.training for module in model.modules()] == modes
    np.testing.assert_array_equal(model.eval().embed(arrays[:3]), embeddings)


def test_progress_is_shown_when_asked_for(
    model: EmbeddingModel, arrays: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    model.embed(arrays[:3])
    assert capsys.readouterr().err == ""
    model.embed(arrays[:3], progress=True)
    assert "3/3" in capsys.readouterr().err


def test_a_batch_too_large_for_the_memory_is_halved(model: EmbeddingModel, arrays: list[np.ndarray]) -> None:
    seen: list[int] = []

    def small_machine(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return batch * 2.0

    batch = torch.arange(13.0)[:, None]
    assert torch.equal(forward_in_parts(small_machine, batch), batch * 2)
    assert sum(n for n in seen if n <= 3) == 13

    def no_machine(batch: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        forward_in_parts(no_machine, batch)


def test_real_photographs(shared_data: Path, model: EmbeddingModel) -> None:
    import zipfile
    from io import BytesIO

    with zipfile.ZipFile(shared_data / "cub40.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:6]
        assert names
        pictures = [Image.open(BytesIO(archive.read(name))) for name in names]
        arrays = [np.array(picture.convert("RGB")) for picture in pictures]
    embeddings = model.embed(pictures)
    np.testing.assert_allclose(embeddings, model.embed(arrays), atol=1e-6)
    assert len(np.unique(embeddings.round(4), axis=0)) == 6

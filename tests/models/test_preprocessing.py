"""Resize, crop and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deepmetric.errors import InputError
from deepmetric.models import EmbeddingModel
from deepmetric.models.preprocessing import IMAGENET, INTERPOLATIONS, Preprocessing


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_gives_bytes_of_the_right_size(interpolation: str) -> None:
    settings = IMAGENET.override(size=24, resize=30, interpolation=interpolation)
    for shape in ((3, 50, 90), (3, 90, 50), (3, 7, 9), (3, 24, 24)):
        image = settings.transform()(torch.randint(0, 256, shape, dtype=torch.uint8))
        assert image.shape == (3, 24, 24)
        assert image.dtype == torch.uint8


def test_shorter_side_then_centre_crop_as_pil_does_it() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 15, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((150, 90), Image.Resampling.BICUBIC)  # smooth, as photographs are
    expected = picture.resize((50, 30), Image.Resampling.BILINEAR).crop((13, 3, 37, 27))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    settings = Preprocessing(24, 30, IMAGENET.mean, IMAGENET.std, "bilinear")
    ours = settings.transform()(pixels).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - np.array(expected).astype(int)).max() <= 1


def test_size_alone_keeps_the_crops_share() -> None:
    assert (IMAGENET.override(size=112).size, IMAGENET.override(size=112).resize) == (112, 128)
    assert IMAGENET.override(size=112, resize=112).resize == 112
    assert IMAGENET.override(resize=300).size == 224
    assert IMAGENET.override() == IMAGENET


def test_model_scales_and_normalises_bytes() -> None:
    model = EmbeddingModel(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    by_hand = images.double() / 255
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)]):
        by_hand[:, channel] = (by_hand[:, channel] - mean) / std
    torch.testing.assert_close(model(images), model(by_hand.float()), atol=1e-6, rtol=1e-5)


def test_negative_std_inverts() -> None:
    torch.manual_seed(0)
    inverting = EmbeddingModel(mean=[1, 1, 1], std=[-1, -1, -1]).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(inverting(images), inverting((255 - images.float()) / 255))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 64, "resize": 32}, "resize 32 is smaller than size 64"),
        ({"mean": [0.5]}, "mean has 1 values; expected 3"),
        ({"std": [0.5, 0.0, 0.5]}, "has a zero"),
        ({"std": [0.5, float("nan"), 0.5]}, "finite"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"interpolation": "lanczos"}, "not one of nearest"),
    ],
)
def test_refuses(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EmbeddingModel(**wrong)

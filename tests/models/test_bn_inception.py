from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import deepmetric
from deepmetric.errors import InputError
from deepmetric.models import BNInception, EmbeddingModel


@pytest.fixture(scope="module")
def converted() -> dict[str, Tensor]:
    """A state dict in the form of the converted ImageNet file: batch normalisation as [1, C], a classifier."""
    torch.manual_seed(0)
    state = {}
    for key, value in BNInception().state_dict().items():
        batchnorm = "_bn." in key and value.ndim == 1
        value = torch.rand_like(value) + 0.5 if batchnorm else value
        state[key] = value[None] if batchnorm else value
    return state | {"last_linear.weight": torch.zeros(1000, 1024), "last_linear.bias": torch.zeros(1000)}


def test_names_and_shapes_of_the_converted_file() -> None:
    state = BNInception().state_dict()
    known = {
        "conv1_7x7_s2.weight": (64, 3, 7, 7),
        "conv1_7x7_s2.bias": (64,),
        "conv2_3x3_bn.running_mean": (192,),
        "inception_3a_1x1.weight": (64, 192, 1, 1),
        "inception_3b_double_3x3_2.weight": (96, 96, 3, 3),
        "inception_3c_3x3.weight": (160, 128, 3, 3),
        "inception_4a_3x3_reduce_bn.weight": (64,),
        "inception_4d_pool_proj.weight": (128, 608, 1, 1),
        "inception_4e_double_3x3_1.weight": (256, 192, 3, 3),
        "inception_5a_double_3x3_reduce.weight": (160, 1056, 1, 1),
        "inception_5b_pool_proj_bn.num_batches_tracked": (),
    }
    assert {key: tuple(state[key].shape) for key in known} == known
    assert len(state) == 69 * 7  # 69 convolutions of two tensors, each with a batch normalisation of five
    # Counted in the published network: 11.3 million with its classifier of 1.0 million.
    assert sum(parameter.numel() for parameter in BNInception().parameters()) == 10_270_240


def test_widths_and_resolutions_of_the_blocks() -> None:
    """Table 1 of Ioffe and Szegedy, with the widths of the released model."""
    model, seen = BNInception().eval(), {}
    for name, module in model.named_modules():
        if name.endswith("_output"):
            module.register_forward_hook(
                lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])})
            )
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    widths = {"3a": 256, "3b": 320, "3c": 576, "4a": 576, "4b": 576, "4c": 608, "4d": 608, "4e": 1056}
    widths |= {"5a": 1024, "5b": 1024}
    sides = dict.fromkeys(("3a", "3b"), 28) | dict.fromkeys(("3c", "4a", "4b", "4c", "4d"), 14)
    sides |= dict.fromkeys(("4e", "5a", "5b"), 7)
    assert seen == {f"inception_{b}_output": (widths[b], sides[b], sides[b]) for b in widths}


@pytest.mark.parametrize(("height", "width"), [(32, 33), (95, 100), (112, 227), (130, 64)])
def test_takes_images_of_any_size(height: int, width: int) -> None:
    with torch.no_grad():
        found = BNInception().eval()(torch.zeros(1, 3, height, width))
    assert found.shape == (1, 1024, round(height / 32), round(width / 32))


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_takes_the_converted_file_and_comes_back(
    pooling: str, converted: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(converted, tmp_path / "bn_inception.pth")
    model = EmbeddingModel(
        "deepmetric.models.BNInception", weights=str(tmp_path / "bn_inception.pth"), pooling=pooling, size=64
    )
    got = model.backbone.state_dict()
    assert all(torch.equal(got[key], converted[key].reshape(got[key].shape)) for key in got)
    model.eval().save_pretrained(tmp_path / "model")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    again = deepmetric.load(tmp_path / "model")
    assert again.preprocessing.bgr
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_preprocessing_is_that_of_caffe() -> None:
    model = EmbeddingModel("deepmetric.models.BNInception", size=64)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    caffe = images.float().flip(1) - torch.tensor([104.0, 117.0, 128.0]).view(3, 1, 1)
    torch.testing.assert_close(model._normalised(images), caffe, rtol=0, atol=1e-4)


def test_another_file_is_refused(converted: dict[str, Tensor], tmp_path: Path) -> None:
    del converted["inception_3a_1x1.bias"]
    torch.save(converted, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"missing keys: inception_3a_1x1\.bias"):
        EmbeddingModel("deepmetric.models.BNInception", weights=str(tmp_path / "w.pth"))

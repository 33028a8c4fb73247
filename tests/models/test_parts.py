"""Models whose embedding is several embeddings side by side: HDC's taps and BIER's groups."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import deepmetric
from deepmetric.errors import InputError
from deepmetric.models import BIERModel, ConvNet, EmbeddingModel, HDCModel
from deepmetric.models.parts import side_by_side
from deepmetric.models.taps import stages_of


class Unused(ConvNet):
    """Has a module that its forward does not call."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__(blocks, width)
        self.spare = nn.Conv2d(3, 3, 1)


SMALL = {"backbone_args": {"blocks": 3, "width": 8}, "size": 32, "mean": [1, 1, 1], "std": [-1, -1, -1]}

VIT = {"backbone": "timm:test_vit", "backbone_args": {}, "dims": [4, 4], "size": None}
HEADS = {"pooling": "gem", "hidden_dim": 8, "layer_norm": True}

MODELS = {
    "hdc": (HDCModel, {"dims": [4, 5, 6], **SMALL}),
    "hdc with other heads": (
        HDCModel,
        {"dims": [4, 6], **HEADS, **SMALL},
    ),
    "hdc as published": (HDCModel, {"dims": [4, 6], "taps": ["blocks.0"], "heads": "googlenet", **SMALL}),
    "hdc timm": (HDCModel, {"dims": [4, 5, 6], "backbone": "timm:resnet10t", "size": 64}),
    "hdc torchvision": (HDCModel, {"dims": [4, 6], "backbone": "torchvision:mobilenet_v3_small", "size": 64}),
    "bier": (BIERModel, {"groups": [2, 3, 7], **SMALL}),
    "bier timm": (
        BIERModel,
        {"groups": [2, 3], "backbone": "timm:resnet10t", "size": 64, "freeze_batchnorm": True},
    ),
}


def images(model: EmbeddingModel, n: int = 4) -> Tensor:
    size = model.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def widths(model: EmbeddingModel) -> list[int]:
    return model.dims if isinstance(model, HDCModel) else model.groups  # type: ignore[return-value]


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    kind, arguments = MODELS[name]
    model = kind(**arguments)
    model(images(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path)
    loaded = deepmetric.load(tmp_path)
    assert type(loaded) is kind
    assert torch.equal(loaded(images(model)), model(images(model)))
    assert loaded.embedding_dim == model.embedding_dim == sum(widths(model))
    assert loaded.preprocessing == model.preprocessing
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["class_path"] == f"deepmetric.models.{kind.__name__}"
    assert config["resize"] == model.preprocessing.resize  # as resolved, though no one gave it
    assert not config["pretrained"]


@pytest.mark.parametrize("name", MODELS)
def test_parts_lie_side_by_side_with_their_weights(name):
    kind, arguments = MODELS[name]
    model = kind(**arguments).eval()
    embeddings = model(images(model))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    norms = torch.stack([part.norm(dim=1) for part in embeddings.split(widths(model), 1)])
    shares = torch.tensor(
        [1.0] * len(norms) if kind is HDCModel else [float(width) for width in model.groups]
    )
    torch.testing.assert_close(norms, (shares / shares.norm())[:, None].expand_as(norms))


def test_dot_product_is_the_parts_cosines_with_squared_weights():
    torch.manual_seed(0)
    parts = [torch.randn(5, width, dtype=torch.float64) for width in (96, 160, 256)]
    rows = side_by_side(parts, [96, 160, 256])
    cosines = [normalize(part, dim=1) @ normalize(part, dim=1).T for part in parts]
    published = [0.1875**2, 0.3125**2, 0.5**2]
    wanted = sum(weight * cosine for weight, cosine in zip(published, cosines)) / sum(published)
    torch.testing.assert_close(rows @ rows.T, wanted)


def test_hdc_s_parts_are_heads_on_the_tapped_maps():
    model = HDCModel(**MODELS["hdc"][1]).eval()
    x = images(model)
    normalised = (x.float() / 255 - model.mean) / model.std
    maps, feature_map = [], normalised
    for block in model.backbone.blocks:
        feature_map = block(feature_map)
        maps.append(feature_map.mean((2, 3)))
    parts = [
        head[1](pooled)
        for head, pooled in zip([*model.tap_heads, nn.Sequential(nn.Identity(), model.head)], maps)
    ]
    wanted = torch.cat([normalize(part, dim=1) for part in parts], 1) / 3**0.5
    torch.testing.assert_close(model(x), wanted)


def test_every_level_trains_the_trunk_up_to_its_tap():
    model = HDCModel(**MODELS["hdc"][1])
    for level, part in enumerate(model(images(model)).split(model.dims, 1)):
        part.sum().backward(retain_graph=True)
        reached = [any(p.grad.abs().sum() > 0 for p in block.parameters()) for block in model.backbone.blocks]
        assert reached == [i <= level for i in range(3)]
        model.zero_grad(set_to_none=False)


def test_a_copy_listens_to_itself_and_threads_do_not_mix():
    model = HDCModel(**MODELS["hdc"][1]).eval()
    other = copy.deepcopy(model)
    x = images(model, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        alone = [model(x[i : i + 1]) for i in range(8)]
        assert not torch.equal(other(x[:1]), alone[0])
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(torch.no_grad()(model), [x[i : i + 1] for i in range(8)] * 4))
    assert all(torch.equal(a, b) for a, b in zip(together, alone * 4))


def test_stages_are_found():
    assert stages_of(ConvNet(blocks=2)) == ["blocks.0", "blocks.1"]
    resnet = HDCModel(dims=[4, 4, 4, 4], backbone="torchvision:resnet18", size=32)
    assert resnet._hub_mixin_config["taps"] == ["layer1", "layer2", "layer3"]  # type: ignore[index]
    swin = HDCModel(dims=[4, 4], backbone="timm:test_convnext", size=64)
    assert swin._hub_mixin_config["taps"] == ["model.stages.2"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"taps": ["blocks.9"], "dims": [4, 4]}, r"no module 'blocks.9'. Did you mean 'blocks.\d'"),
        ({"taps": ["blocks.0"]}, "3 dims and 1 taps"),
        ({"dims": [4] * 5}, "needs a backbone of as many stages; this one has 3"),
        ({"dims": []}, "`dims` of HDCModel"),
        (
            {"taps": ["blocks.2"], "dims": [4, 4], "heads": "googlenet"},
            "at least 5 x 5 at the taps, got 4 x 4",
        ),
        ({"heads": "pooling"}, "Did you mean 'pooled'"),
        ({**VIT, "taps": ["model.blocks.0"]}, "expected a feature map"),
        ({"backbone": f"{__name__}.Unused", "taps": ["spare"], "dims": [4, 4]}, "did not run"),
    ],
)
def test_wrong_taps_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        HDCModel(**{**SMALL, **arguments})


def test_backbone_without_stages_is_asked_for_taps():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    with pytest.raises(InputError, match="name the modules to tap, for example first, second"):
        stages_of(Plain())


def test_wrong_groups_are_named():
    with pytest.raises(InputError, match="`groups` of BIERModel is \\[4, 0\\]"):
        BIERModel(groups=[4, 0])

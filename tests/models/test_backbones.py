"""Backbones of every source: shapes, parameters, preprocessing, and equality with the source's own features."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torchvision
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.models import ConvNet, EmbeddingModel
from deepmetric.models.backbones import build_backbone
from deepmetric.models.preprocessing import IMAGENET, Preprocessing
from deepmetric.models.timm_backbone import TimmBackbone


class Tiny(nn.Module):
    """A user's network with its own preprocessing."""

    preprocessing = Preprocessing(size=16, resize=20, mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class Vector(nn.Module):
    """A user's network that pools by itself and says nothing of preprocessing."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


class Tokens(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2)


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ZeroDivisionError("oh")


TINY = f"{__name__}.Tiny"

# backbone, size asked for, width of the pooled features, whether it gives a map
MATRIX = [
    ("timm:resnet18", 64, 512, True),
    ("timm:mobilenetv4_conv_small", 64, 1280, True),  # declares 960
    ("timm:convnext_atto", 64, 320, True),
    ("timm:swin_tiny_patch4_window7_224", None, 768, True),  # [B, h, w, C]
    ("timm:vit_tiny_patch16_224", 64, 192, False),
    ("timm:efficientvit_b0", 64, 1280, False),  # a convolution before its pooling
    ("torchvision:resnet18", 64, 512, True),
    ("torchvision:mobilenet_v3_small", 64, 576, True),
    ("torchvision:vit_b_16", 32, 768, False),
    ("deepmetric.models.ConvNet", None, 64, True),
    (TINY, None, 7, True),
    (f"{__name__}.Vector", 16, 3, False),
]


@pytest.mark.parametrize(("backbone", "size", "width", "gives_map"), MATRIX)
def test_matrix(backbone: str, size: int | None, width: int, gives_map: bool) -> None:
    model = EmbeddingModel(backbone, size=size, embedding_dim=None, normalize=False).eval()
    side = model.preprocessing.size
    assert size in (None, side)
    assert model.embedding_dim == width
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    with torch.no_grad():
        assert model(images).shape == (2, width)
        features = model.backbone(torch.randn(2, 3, side, side))
    assert features.ndim == (4 if gives_map else 2)
    assert (model.pooling.__class__ is nn.Identity) == (not gives_map)
    if gives_map:
        other = EmbeddingModel(backbone, size=size, embedding_dim=8, pooling="gem").eval()
        with torch.no_grad():
            assert other(images).shape == (2, 8)
    else:
        with pytest.raises(InputError, match=r"pooling: max cannot be applied: .* pools by itself"):
            EmbeddingModel(backbone, size=size, pooling="max")


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "mobilenetv3_small_050",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "test_vit",
        "efficientvit_b0",
    ],
)
def test_timm_features_with_average_pooling_are_timms_own(name: str) -> None:
    backbone, preprocessing = build_backbone(f"timm:{name}")
    assert isinstance(backbone, TimmBackbone)
    model = EmbeddingModel(f"timm:{name}", embedding_dim=None, normalize=False).eval()
    assert isinstance(model.backbone, TimmBackbone)
    original = timm.create_model(name, num_classes=0).eval()
    original.load_state_dict(model.backbone.model.state_dict())
    images = torch.randn(2, 3, preprocessing.size, preprocessing.size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), atol=1e-5, rtol=1e-4)


def test_timm_pooling_stands_before_what_follows_timms_own() -> None:
    model = EmbeddingModel(
        "timm:mobilenetv3_small_050", size=64, pooling="max", embedding_dim=None, normalize=False
    )
    original = timm.create_model("mobilenetv3_small_050", num_classes=0, global_pool="max").eval()
    original.load_state_dict(model.eval().backbone.model.state_dict())  # type: ignore[union-attr]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), atol=1e-5, rtol=1e-4)


SMALL_TORCHVISION = [
    "resnet18", "mobilenet_v3_small", "densenet121", "swin_t", "convnext_tiny", "regnet_y_400mf", "shufflenet_v2_x0_5",
    "mnasnet0_5", "googlenet", "squeezenet1_1", "maxvit_t",
]  # fmt: skip


@pytest.mark.parametrize("name", SMALL_TORCHVISION)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_torchvision_map_is_what_the_network_pools(name: str) -> None:
    backbone, preprocessing = build_backbone(f"torchvision:{name}")
    original = torchvision.models.get_model(name, weights=None).eval()
    backbone.load_state_dict(original.state_dict(), strict=False)
    seen: list[Tensor] = []
    classifier = next(
        getattr(original, key) for key in ("fc", "classifier", "head") if hasattr(original, key)
    )
    classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    side = 224 if name == "maxvit_t" else 96
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        features = backbone.eval()(images)
        original(images)
    expected = seen[0].mean(dim=(2, 3)) if seen[0].ndim == 4 else seen[0]  # some pool inside their classifier
    torch.testing.assert_close(features.mean(dim=(2, 3)), expected, atol=1e-5, rtol=1e-4)
    assert preprocessing.size == 224


def test_googlenets_own_input_transform_is_in_its_preprocessing() -> None:
    # With published weights its forward turns ImageNet normalisation into (x - 0.5) / 0.5.
    _, preprocessing = build_backbone("torchvision:googlenet")
    original = torchvision.models.googlenet(weights=None, transform_input=True, init_weights=False)
    pixels = torch.rand(1, 3, 8, 8)
    mean, std = torch.tensor(IMAGENET.mean).view(3, 1, 1), torch.tensor(IMAGENET.std).view(3, 1, 1)
    expected = original._transform_input((pixels - mean) / std)
    mean, std = torch.tensor(preprocessing.mean).view(3, 1, 1), torch.tensor(preprocessing.std).view(3, 1, 1)
    torch.testing.assert_close((pixels - mean) / std, expected)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_preprocessing_is_timms(name: str) -> None:
    _, ours = build_backbone(f"timm:{name}")
    config = resolve_data_config({}, model=timm.create_model(name, num_classes=0))
    assert (ours.size, ours.interpolation) == (config["input_size"][-1], config["interpolation"])
    assert (ours.mean, ours.std) == (config["mean"], config["std"])
    assert ours.resize == math.floor(ours.size / config["crop_pct"])
    assert f"size={ours.resize}" in str(create_transform(**config)).replace("[", "").replace("(", "")


def test_torchvision_preprocessing_is_that_of_its_weights() -> None:
    _, ours = build_backbone("torchvision:vit_b_16")
    theirs = torchvision.models.ViT_B_16_Weights.DEFAULT.transforms()
    assert (ours.size, ours.resize) == (theirs.crop_size[0], theirs.resize_size[0])
    assert (list(ours.mean), list(ours.std), ours.interpolation) == (
        theirs.mean,
        theirs.std,
        theirs.interpolation.value,
    )


def test_users_class_says_its_preprocessing_or_gets_imagenets() -> None:
    assert build_backbone(TINY)[1] == Tiny.preprocessing
    assert build_backbone(f"{__name__}.Vector")[1] == IMAGENET
    assert build_backbone("deepmetric.models.ConvNet")[1].size == 32


def test_backbone_args_reach_the_network() -> None:
    assert EmbeddingModel(TINY, {"width": 9}, embedding_dim=None).embedding_dim == 9
    assert EmbeddingModel("timm:vit_tiny_patch16_224", {"depth": 1, "img_size": 48}).preprocessing.size == 48
    assert len(EmbeddingModel(backbone_args={"blocks": 2}).backbone.blocks) == 2  # type: ignore[arg-type]


def test_convnet() -> None:
    net = ConvNet(blocks=3, width=16)
    # 3 x 3 convolutions without bias, and batch normalisation's scale and shift.
    assert sum(p.numel() for p in net.parameters()) == 9 * (3 * 16 + 16 * 16 + 16 * 16) + 3 * 2 * 16
    assert net(torch.randn(2, 3, 28, 36)).shape == (2, 16, 3, 4)
    assert (net(torch.randn(2, 3, 28, 28)) >= 0).all()
    with pytest.raises(InputError, match="needs images of 8 x 8 pixels or more, got 8 x 7"):
        net(torch.randn(1, 3, 8, 7))
    with pytest.raises(InputError, match="width is 0"):
        ConvNet(width=0)


@pytest.mark.parametrize(
    ("backbone", "args", "message"),
    [
        ("timm:resnet19", None, r"timm has no model 'resnet19'\. Did you mean 'resnet1.*'"),
        ("timm:resnet18.a1_in2k", None, r"Invalid pretrained tag.*Did you mean 'resnet18\.a1_in1k'"),
        ("timm:hf-hub:some/one", None, "timm has no model 'hf-hub:some/one'"),
        ("torchvision:resnet81", None, r"torchvision has no model 'resnet81'\. Did you mean 'resnet"),
        ("resnet18", None, "expected timm:NAME.*Did you mean 'timm:resnet18' or 'torchvision:resnet18'"),
        ("Timm:resnet18", None, "unknown backbone 'Timm:resnet18'.*Did you mean 'timm:resnet18'"),
        ("deepmetric.models.ConvNt", None, "has no 'ConvNt'. Did you mean 'ConvNet'"),
        ("no_such_package.Net", None, "cannot import 'no_such_package'.*PYTHONPATH"),
        ("subprocess.Popen", {"args": ["touch", "/nowhere"]}, "expected a subclass of torch.nn.Module"),
        ("os.system", {"command": "true"}, "expected a subclass of torch.nn.Module"),
        ("deepmetric.models.ConvNet", {"widht": 3}, "cannot be built with .*widht"),
        ("timm:resnet18", {"widht": 3}, "timm:resnet18 cannot be built: .*widht"),
        ("torchvision:resnet18", {"widht": 3}, "torchvision:resnet18 cannot be built: .*widht"),
        ("timm:resnet18", {"in_chans": 1}, "timm:resnet18 fails on images of 3 x 224 x 224: .*but got 3"),
        (f"{__name__}.Tokens", None, r"gives \(1, 3, 50176\); expected a feature map"),
        (f"{__name__}.Broken", None, "fails on an image of 224 x 224 pixels: oh"),
    ],
)
def test_refuses(backbone: str, args: dict | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EmbeddingModel(backbone, args)


def test_same_seed_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(EmbeddingModel("timm:resnet10t", size=32).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

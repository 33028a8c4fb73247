"""The model as a module: parts, normalisation, precision, frozen batch normalisation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepmetric.errors import InputError
from deepmetric.models import EmbeddingModel, GeM

IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_unit_length_in_float32_also_under_autocast() -> None:
    model = EmbeddingModel(embedding_dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model(IMAGES)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


def test_without_normalisation() -> None:
    torch.manual_seed(0)
    plain = EmbeddingModel(normalize=False).eval()
    unit = EmbeddingModel().eval()
    unit.load_state_dict(plain.state_dict())
    torch.testing.assert_close(nn.functional.normalize(plain(IMAGES)), unit(IMAGES))
    assert not torch.allclose(plain(IMAGES).norm(dim=1), torch.ones(4))


def test_parts_hold_all_parameters() -> None:
    model = EmbeddingModel(pooling="gem", hidden_dim=32, layer_norm=True, embedding_dim=8)
    parts = [*model.backbone.parameters(), *model.pooling.parameters(), *model.head.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}
    assert isinstance(model.pooling, GeM)
    assert model.embedding_dim == 8
    # Preprocessing is kept in the config, not among the weights.
    assert {"mean", "std"}.isdisjoint(model.state_dict())


def test_every_parameter_takes_gradient() -> None:
    model = EmbeddingModel(
        "timm:mobilenetv3_small_050", pooling="gem", hidden_dim=16, layer_norm=True, size=64
    )
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    (model(images) * torch.randn(4, 128)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_head_needs_a_width() -> None:
    with pytest.raises(InputError, match="embedding_dim: null leaves out"):
        EmbeddingModel(embedding_dim=None, hidden_dim=16)


def test_a_size_that_the_backbone_does_not_take_is_named() -> None:
    model = EmbeddingModel("timm:vit_tiny_patch16_224", embedding_dim=8, size=32).eval()
    with pytest.raises(InputError, match=r"fails on images of 48 x 16: .* was built for 32 x 32"):
        model(torch.zeros(1, 3, 48, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"shape \(3, 32, 32\); expected \[B, 3, H, W\]"),
        (IMAGES.permute(0, 2, 3, 1), r"shape \(4, 32, 32, 3\)"),
        (IMAGES.long(), "torch.int64; expected uint8"),
    ],
)
def test_refuses_other_tensors(images: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EmbeddingModel()(images)


@pytest.mark.parametrize("backbone", ["deepmetric.models.ConvNet", "timm:resnet10t", "torchvision:resnet18"])
def test_frozen_batchnorm_stays_frozen(backbone: str) -> None:
    model = EmbeddingModel(backbone, freeze_batchnorm=True, size=32)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for _ in range(2):  # train() again after eval(), as a trainer does at every evaluation
        model.train()
        assert model.training
        assert model.head.training
        assert not any(norm.training for norm in norms)
        before = copy.deepcopy([norm.state_dict() for norm in norms])
        model.zero_grad()
        model(IMAGES).square().sum().backward()
        for norm, old in zip(norms, before):
            assert all(torch.equal(value, old[key]) for key, value in norm.state_dict().items())
            assert not norm.weight.requires_grad
            assert norm.weight.grad is None
            assert norm.bias.grad is None
        assert any(p.grad is not None for p in model.backbone.parameters())
        model.eval()


def test_batchnorm_learns_when_not_frozen() -> None:
    model = EmbeddingModel()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.training
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    model(IMAGES)
    assert not torch.equal(norm.running_mean, before)  # type: ignore[arg-type]


def test_building_does_not_touch_running_statistics() -> None:
    model = EmbeddingModel()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.equal(norm.running_mean, torch.zeros(64))  # type: ignore[arg-type]
    assert norm.num_batches_tracked == 0


def test_copies_are_independent() -> None:
    model = EmbeddingModel("timm:mobilenetv3_small_050", size=64).eval()
    twin = copy.deepcopy(model)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before = model(images)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(model(images), before)
    assert not torch.allclose(twin(images), before)


class Layouts(nn.Module):
    """Notes in which layout its images come; one that flattens its map by ``view``, as older networks do."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.flat = flat
        self.last: bool | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.last = images.is_contiguous(memory_format=torch.channels_last)
        maps = self.conv(images)
        return maps.view(len(maps), -1) if self.flat else maps


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255, IMAGES[:1]], ids=["uint8", "float", "one"])
def test_channels_last_where_the_backbone_takes_it(flat: bool, images: torch.Tensor) -> None:
    model = EmbeddingModel(f"{__name__}.Layouts", {"flat": flat}, size=32, embedding_dim=5)
    embeddings = model(images)
    assert model.backbone.last is not flat
    normalised = images if images.is_floating_point() else (images / 255 - model.mean) / model.std
    features = model.backbone(normalised.contiguous())
    torch.testing.assert_close(embeddings, nn.functional.normalize(model.head(model.pooling(features))))
    embeddings.sum().backward()
    assert model.backbone.conv.weight.grad is not None

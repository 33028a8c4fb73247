"""Weights from local files, and what happens when there is no network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import deepmetric.models.weights as weights_module
from deepmetric.errors import InputError
from deepmetric.models import ConvNet, EmbeddingModel


def assert_same(module: nn.Module, state: dict[str, Tensor]) -> None:
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.fixture
def resnet_state() -> dict[str, Tensor]:
    return timm.create_model("resnet10t", num_classes=11).state_dict()


@pytest.mark.parametrize("form", ["safetensors", "pth", "checkpoint", "ddp", "headless"])
def test_timm_file(form: str, resnet_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    content: dict = resnet_state
    if form == "safetensors":
        save_file(resnet_state, path)
    else:
        if form == "checkpoint":
            content = {"state_dict": resnet_state, "epoch": 3}
        if form == "ddp":
            content = {f"module.{key}": value for key, value in resnet_state.items()}
        if form == "headless":
            content = {key: value for key, value in resnet_state.items() if not key.startswith("fc.")}
        torch.save(content, path)
    model = EmbeddingModel("timm:resnet10t", weights=str(path), size=64)
    assert_same(model.backbone.model, resnet_state)  # type: ignore[arg-type]
    assert not any("fc" in key for key in model.backbone.state_dict())


def test_timm_position_embedding_is_resampled(tmp_path: Path) -> None:
    original = timm.create_model("test_vit", num_classes=5)  # made for 160 pixels
    torch.save(original.state_dict(), tmp_path / "w.pth")
    model = EmbeddingModel("timm:test_vit", weights=str(tmp_path / "w.pth"), size=96)
    inner = model.backbone.model
    assert inner.pos_embed.shape[1] == 1 + 6 * 6  # type: ignore[union-attr, index]
    assert torch.equal(inner.blocks[0].attn.qkv.weight, original.blocks[0].attn.qkv.weight)  # type: ignore


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_torchvision_file(name: str, tmp_path: Path) -> None:
    state = torchvision.models.get_model(name, weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = EmbeddingModel(f"torchvision:{name}", weights=str(tmp_path / "w.pth"), size=64)
    assert_same(model.backbone, state)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(
    "backbone", ["torchvision:resnet18", "deepmetric.models.BNInception", "timm:resnet10t"]
)
def test_published_file_without_batch_counters(backbone: str, tmp_path: Path) -> None:
    """As torchvision's ResNets and the BN-Inception of most tables are: older than the counters."""
    torch.manual_seed(0)
    source = EmbeddingModel(backbone, size=64).backbone
    inner = source.model if backbone.startswith("timm") else source
    state = {key: value for key, value in inner.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "w.pth")
    model = EmbeddingModel(backbone, weights=str(tmp_path / "w.pth"), size=64)
    assert_same(model.backbone, source.state_dict())


def test_file_for_a_class(tmp_path: Path) -> None:
    state = ConvNet(width=8).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model = EmbeddingModel(backbone_args={"width": 8}, weights=str(tmp_path / "w.safetensors"))
    assert_same(model.backbone, state)


@pytest.mark.parametrize("backbone", ["timm:resnet10t", "torchvision:resnet18", "deepmetric.models.ConvNet"])
def test_file_of_another_network_is_refused_with_its_keys(backbone: str, tmp_path: Path) -> None:
    path = str(tmp_path / "w.pth")
    torch.save({"strange.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"(?is)w\.pth does not match.*missing.*unexpected.*strange\.weight"):
        EmbeddingModel(backbone, weights=path, size=64)


def test_one_missing_key_and_one_other_shape_are_named(tmp_path: Path) -> None:
    state = ConvNet().state_dict()
    del state["blocks.0.conv.weight"]
    state["blocks.1.conv.weight"] = torch.zeros(2, 2, 3, 3)
    path = str(tmp_path / "w.pth")
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        EmbeddingModel(weights=path)
    assert "missing keys: blocks.0.conv.weight" in str(caught.value)
    assert "blocks.1.conv.weight (2, 2, 3, 3) instead of (64, 64, 3, 3)" in str(caught.value)
    assert "unexpected" not in str(caught.value)


def test_timm_names_one_missing_key(resnet_state: dict[str, Tensor], tmp_path: Path) -> None:
    del resnet_state["layer1.0.conv1.weight"]
    path = str(tmp_path / "w.pth")
    torch.save(resnet_state, path)
    with pytest.raises(InputError, match=r"(?s)does not match timm:resnet10t.*layer1\.0\.conv1\.weight"):
        EmbeddingModel("timm:resnet10t", weights=path, size=64)


class Harmful:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


@pytest.mark.parametrize("kind", ["absent", "text", "garbage", "pickle", "empty"])
def test_files_that_are_no_weights(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("w.txt" if kind == "text" else "w.pth")
    if kind in ("text", "garbage"):
        path.write_bytes(b"no weights at all")
    if kind in ("pickle", "empty"):
        torch.save({"state_dict": Harmful()} if kind == "pickle" else {}, path)
    with pytest.raises(InputError, match=f"weights: .*w\\.{'txt' if kind == 'text' else 'pth'}"):
        EmbeddingModel(weights=str(path))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("backbone", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:resnet18"])
def test_pretrained_without_network_fails_at_once_with_the_way_out(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    for module in ("timm_backbone", "torchvision_backbone"):
        monkeypatch.setattr(f"deepmetric.models.{module}.reachable", lambda url: False)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"cannot be reached.*weights: PATH, or set pretrained: false"):
        EmbeddingModel(backbone, pretrained=True)
    assert time.monotonic() - start < 10


def test_pretrained_from_the_local_cache_needs_no_network(
    resnet_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = timm.create_model("resnet10t").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: str(tmp_path / name))
    assert_same(EmbeddingModel("timm:resnet10t", pretrained=True, size=64).backbone.model, state)  # type: ignore


def test_pretrained_where_nothing_is_published() -> None:
    with pytest.raises(InputError, match="there are no weights for timm:convnext_atto_rms"):
        EmbeddingModel("timm:convnext_atto_rms", pretrained=True)
    with pytest.raises(InputError, match="ConvNet has no published weights"):
        EmbeddingModel(pretrained=True)


def test_pretrained_and_a_file_exclude_each_other() -> None:
    with pytest.raises(InputError, match="exclude each other"):
        EmbeddingModel("timm:resnet10t", pretrained=True, weights="w.pth")


def test_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.monotonic()
    assert not weights_module.reachable(
        "http://127.0.0.1:9", timeout_seconds=1
    )  # the discard port: nobody listens
    assert time.monotonic() - start < 5
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        weights_module, "urlopen", lambda *args, **kwargs: pytest.fail("asked although offline")
    )
    assert not weights_module.reachable("http://127.0.0.1:9")

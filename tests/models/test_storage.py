"""A model as a folder: saved, loaded by a process that knows nothing, refused when it does not fit together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepmetric
from deepmetric.errors import InputError
from deepmetric.models import EmbeddingModel

IMAGES = [np.random.default_rng(i).integers(0, 256, (50, 40 + i, 3), dtype=np.uint8) for i in range(5)]

MODELS = {
    "convnet": {"hidden_dim": 16, "layer_norm": True, "mean": [1, 1, 1], "std": [-1, -1, -1]},
    "no head": {"embedding_dim": None, "normalize": False, "backbone_args": {"blocks": 2, "width": 8}},
    "timm": {"backbone": "timm:resnet10t", "pooling": "gem", "size": 48, "freeze_batchnorm": True},
    "transformer": {"backbone": "timm:test_vit", "size": 96, "resize": 96, "interpolation": "bilinear"},
    "torchvision": {"backbone": "torchvision:mobilenet_v3_small", "pooling": "avg+max", "size": 64},
}


class Nothing(nn.Module):
    pass


class Wide(EmbeddingModel):
    """A user's model with arguments of its own."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(backbone_args={"width": width}, embedding_dim=width)


class Passing(EmbeddingModel):
    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    EmbeddingModel(embedding_dim=8).save_pretrained(tmp_path / "birds")
    return tmp_path / "birds"


def trained(**args: object) -> EmbeddingModel:
    """A model whose every buffer and parameter differs from a fresh one's."""
    model = EmbeddingModel(**args)  # type: ignore[arg-type]
    size = model.preprocessing.size
    model(torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def test_another_process_gets_bit_equal_embeddings(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", *IMAGES)
    expected = {}
    for name, args in MODELS.items():
        model = trained(**args)
        model.save_pretrained(tmp_path / name)
        expected[name] = model.embed(IMAGES)
    script = """
import sys, numpy as np, deepmetric
images = list(np.load("images.npz").values())
for name in sys.argv[1:]:
    model = deepmetric.load(name)
    assert not model.training
    np.save(name + ".npy", model.embed(images))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(
        [sys.executable, "-c", script, *MODELS], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    for name in MODELS:
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected[name], err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_settings_come_back(name: str, tmp_path: Path) -> None:
    model = EmbeddingModel(**MODELS[name])  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    again = EmbeddingModel.from_pretrained(tmp_path)
    assert again.preprocessing == model.preprocessing
    assert again.embedding_dim == model.embedding_dim
    assert again.freeze_batchnorm == model.freeze_batchnorm
    assert again._hub_mixin_config == model._hub_mixin_config


def test_config_needs_no_network_and_nothing_beside(tmp_path: Path) -> None:
    torch.save(torch.nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "w.pth")
    model = EmbeddingModel("torch.nn.Conv2d", _conv(), weights=str(tmp_path / "w.pth"), size=24)
    (tmp_path / "w.pth").unlink()
    model.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["pretrained"] is False
    assert config["weights"] is None
    assert config["class_path"] == "deepmetric.models.EmbeddingModel"
    assert (config["size"], config["resize"], config["interpolation"]) == (24, 27, "bilinear")
    assert config["mean"] == [0.485, 0.456, 0.406]
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    np.testing.assert_array_equal(deepmetric.load(tmp_path / "m").embed(IMAGES), model.embed(IMAGES))


def _conv() -> dict[str, int]:
    return {"in_channels": 3, "out_channels": 4, "kernel_size": 3}


def test_saving_again_replaces_the_files_but_a_persons_card(tmp_path: Path) -> None:
    EmbeddingModel(embedding_dim=8).save_pretrained(tmp_path)
    assert "deepmetric.load" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    second = EmbeddingModel(embedding_dim=9)
    second.save_pretrained(tmp_path)
    np.testing.assert_array_equal(deepmetric.load(tmp_path).embed(IMAGES), second.embed(IMAGES))
    assert (tmp_path / "README.md").read_text() == (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_save_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = deepmetric.load(saved).embed(IMAGES)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_model", full_disk)
    with pytest.raises(OSError, match="No space"):
        EmbeddingModel(embedding_dim=8).save_pretrained(saved)
    np.testing.assert_array_equal(deepmetric.load(saved).embed(IMAGES), old)
    assert len(list(saved.iterdir())) == 3


def test_what_a_killed_save_left_is_cleared_away(saved: Path) -> None:
    (saved / ".saving-abc").mkdir()
    (saved / ".saving-abc" / "model.safetensors").write_bytes(b"half of it")
    EmbeddingModel(embedding_dim=8).save_pretrained(saved)
    assert len(list(saved.iterdir())) == 3


@pytest.mark.parametrize("cls", [Wide, Passing])
def test_subclasses_come_back_as_themselves(cls: type[EmbeddingModel], tmp_path: Path) -> None:
    model = Wide(width=6) if cls is Wide else Passing(embedding_dim=6, backbone_args={"width": 5})
    model.save_pretrained(tmp_path)
    again = deepmetric.load(tmp_path)
    assert type(again) is cls
    np.testing.assert_array_equal(again.embed(IMAGES), model.embed(IMAGES))


def test_run_folder_and_device(saved: Path) -> None:
    run = saved.parent / "run"
    run.mkdir()
    saved.rename(run / "model")
    assert deepmetric.load(run, device="cpu").embedding_dim == 8
    assert deepmetric.load(str(run / "model")).embedding_dim == 8


def test_pushing_goes_through_the_mixin(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = {}

    class Api:
        def __init__(self, **kwargs: object) -> None: ...

        def create_repo(self, repo_id: str, **kwargs: object) -> object:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, repo_id: str, **kwargs: object) -> str:
            pushed[repo_id] = deepmetric.load(folder_path).embed(IMAGES)
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model = deepmetric.load(saved)
    model.push_to_hub("me/birds")
    model.save_pretrained(saved.parent / "finches", push_to_hub=True)
    assert set(pushed) == {"me/birds", "finches"}
    np.testing.assert_array_equal(pushed["me/birds"], model.embed(IMAGES))


def rewrite(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_path": "subprocess.Popen"}, "expected a subclass of torch.nn.Module"),
        ({"class_path": f"{__name__}.Nothing"}, "has no huggingface_hub mixin"),
        ({"class_path": f"{__name__}.Absent"}, "has no 'Absent'"),
        ({"class_path": None}, "names no class_path"),
        (
            {"backbone": "subprocess.Popen", "backbone_args": {"args": ["true"]}},
            "expected a subclass of torch.nn.Module",
        ),
        (
            {"embedding_dim": 9},
            "does not match the model that its config.json describes(?s:.*)head.linear.weight",
        ),
        ({"backbone_args": {"blocks": 3}}, "does not match(?s:.*)blocks.3"),
    ],
)
def test_configs_that_do_not_fit(saved: Path, changes: dict, message: str) -> None:
    rewrite(saved, **changes)
    with pytest.raises(InputError, match=message):
        deepmetric.load(saved)


def test_broken_files(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"cannot read .*model.safetensors"):
        deepmetric.load(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model.safetensors"):
        deepmetric.load(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is not JSON"):
        deepmetric.load(saved)


def test_places_without_a_model(saved: Path) -> None:
    parent = saved.parent
    with pytest.raises(InputError, match=r"there is no folder .*bird\. Did you mean 'birds'\?"):
        deepmetric.load(parent / "bird")
    with pytest.raises(InputError, match="is a file; give the folder"):
        deepmetric.load(saved / "model.safetensors")
    with pytest.raises(InputError, match=r"is no model: expected config.json in it .* found birds"):
        deepmetric.load(parent)
    (parent / "recipe.yaml").touch()
    with pytest.raises(InputError, match="has no model yet"):
        deepmetric.load(parent)


def test_hub_names_without_network_fail_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deepmetric.models.load.reachable", lambda url: False)
    with pytest.raises(InputError, match=r"there is no folder someone/birds.*cannot be reached"):
        deepmetric.load("someone/birds")
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    monkeypatch.setattr("deepmetric.models.load.reachable", lambda url: pytest.fail("the Hub was asked"))
    with pytest.raises(InputError, match=r"there is no folder runs/brids. Did you mean 'birds'"):
        deepmetric.load("runs/brids")


def test_from_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(repo_id: str, filename: str, **kwargs: object) -> str:
        assert repo_id == "someone/birds"
        return str(saved / filename)

    monkeypatch.chdir(tmp_path)
    for module in ("deepmetric.models.load", "deepmetric.models.storage", "huggingface_hub.hub_mixin"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    monkeypatch.setattr("deepmetric.models.load.reachable", lambda url: True)
    np.testing.assert_array_equal(
        deepmetric.load("someone/birds").embed(IMAGES), deepmetric.load(saved).embed(IMAGES)
    )


def test_pickled_weights_are_never_opened(saved: Path) -> None:
    state: dict[str, Tensor] = deepmetric.load(saved).state_dict()
    (saved / "model.safetensors").unlink()
    torch.save(state, saved / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no model.safetensors"):
        deepmetric.load(saved)

"""Backbones of torchvision, with the classifier taken off."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError, did_you_mean
from deepmetric.models.preprocessing import Preprocessing
from deepmetric.models.weights import load_exactly, no_download, reachable, read_weights

_HEAD = ("avgpool", "classifier", "fc")  # where the feature map ends
_AUXILIARY = ("AuxLogits", "aux1", "aux2")  # side branches of the two Inceptions


class VisionTransformer(nn.Module):
    """torchvision's ViT without its classifier: the class token, [B, C]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        model.heads = nn.Identity()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def torchvision_backbone(
    name: str, args: dict[str, Any], pretrained: bool, weights: str | None, size: int | None
) -> tuple[nn.Module, Preprocessing]:
    """The classification network ``name`` up to its last feature map, and the preprocessing it was trained with.

    Raises:
        InputError: unknown name, wrong argument, weights that cannot be had or do not match.
    """
    import torchvision.models as zoo

    names = zoo.list_models(module=zoo)
    if name not in names:
        raise InputError(f"torchvision has no model {name!r}.{did_you_mean(name, names)}")
    default = zoo.get_model_weights(name)["DEFAULT"]
    if pretrained and not _is_cached(default.url) and not reachable(default.url):
        raise no_download(f"torchvision:{name}", "download.pytorch.org")
    args = dict(args)
    if size is not None and name.startswith("vit_"):
        args.setdefault("image_size", size)
    if size is not None and name.startswith("maxvit"):
        args.setdefault("input_size", (size, size))
    if name in ("inception_v3", "googlenet"):
        args.setdefault("init_weights", not pretrained)
    try:
        model = zoo.get_model(name, weights=default if pretrained else None, **args)
    except (TypeError, ValueError) as error:
        raise InputError(f"torchvision:{name} cannot be built: {error}") from error
    all_keys = set(model.state_dict())
    backbone = VisionTransformer(model) if hasattr(model, "heads") else _up_to_the_map(model)
    if weights is not None:
        inner = backbone.model if isinstance(backbone, VisionTransformer) else backbone
        load_exactly(inner, read_weights(weights), weights, also_allowed=all_keys)
    return backbone, _preprocessing(default.transforms(), name)


def _up_to_the_map(model: nn.Module) -> nn.Module:
    # torchvision's networks hold their stages in the order in which forward calls them; the keys stay the same.
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in model.named_children():
        if name in _HEAD:
            break
        if name not in _AUXILIARY:
            stages[name] = nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child
    if type(model).__name__ == "DenseNet":
        stages["relu"] = nn.ReLU(inplace=True)  # a function in DenseNet's forward
    return nn.Sequential(stages)


def _is_cached(url: str) -> bool:
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]).is_file()


def _preprocessing(transforms: Any, name: str) -> Preprocessing:
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if name in ("inception_v3", "googlenet"):
        # Their forward turns ImageNet's mean and std into these two before the first layer.
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    size = transforms.crop_size[0]
    # A few networks were trained on a crop as large as the resized image or larger.
    resize = max(transforms.resize_size[0], size)
    return Preprocessing(size, resize, mean, std, transforms.interpolation.value)

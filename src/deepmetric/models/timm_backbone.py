"""Backbones of timm, with the classifier taken off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError, did_you_mean
from deepmetric.models.preprocessing import IMAGENET, Preprocessing
from deepmetric.models.weights import no_download, reachable, read_weights


class TimmBackbone(nn.Module):
    """A timm model in two parts, so that another pooling can stand between them.

    ``forward`` gives the last feature map [B, C, h, w]; :meth:`after_pooling` applies what the model has behind its
    own average pooling (a convolution in MobileNet, a norm in ConvNeXt), so that with average pooling the two
    together are exactly timm's ``num_classes=0`` features. A model that does not begin its head with average pooling
    (transformers with tokens, attention pooling) keeps its own, and ``forward`` gives the pooled features [B, C].
    """

    model: Any  # timm declares forward_features and forward_head on no common class

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model = model
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self.pools_itself = not self._averages_first(size)

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.forward_features(images)
        if self.pools_itself:
            return self.model.forward_head(features, pre_logits=True)
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def after_pooling(self, pooled: Tensor) -> Tensor:
        """[B, C] -> [B, C'], the layers between the model's pooling and its classifier."""
        # The head's average pooling leaves a map of one position as it is.
        single = pooled[:, None, None, :] if self.channels_last else pooled[:, :, None, None]
        return self.model.forward_head(single, pre_logits=True).flatten(1)

    @torch.no_grad()
    def _averages_first(self, size: int) -> bool:
        """Whether the head gives the same for a map of noise as for the mean of that map."""
        self.model.eval()
        features = self.model.forward_features(torch.zeros(1, 3, size, size))
        if not (isinstance(features, Tensor) and features.ndim == 4):
            return False
        # Noise rather than an image's features: an untrained network's map is nearly constant. Its own generator,
        # because building a model must not depend on how it was found out.
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        mean = noise.mean(dim=(1, 2) if self.channels_last else (2, 3), keepdim=True)
        try:
            of_map = self.model.forward_head(noise, pre_logits=True).flatten(1)
            of_mean = self.model.forward_head(mean, pre_logits=True).flatten(1)
        except (RuntimeError, ValueError, AssertionError):  # a head that needs the map's full size
            return False
        tolerance = 1e-3 * of_map.abs().max().item()
        return of_map.shape == of_mean.shape and torch.allclose(of_map, of_mean, rtol=0, atol=tolerance)


def timm_backbone(
    name: str, args: dict[str, Any], pretrained: bool, weights: str | None, size: int | None
) -> tuple[nn.Module, Preprocessing]:
    """The timm model ``name`` (with or without a ``.tag``) and the preprocessing it was trained with.

    Raises:
        InputError: unknown name, wrong argument, weights that cannot be had or do not match.
    """
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}.{did_you_mean(name, timm.list_models())}")
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(name.split(".")[0] + ".*")
        raise InputError(f"timm:{name}: {error}.{did_you_mean(name, tags)}") from error
    config: dict[str, Any] = found.to_dict() if found else {}
    trained_size = int(args.get("img_size") or config.get("input_size", (3, 224, 224))[-1])
    size = size or trained_size
    if config.get("fixed_input_size") and size != trained_size:
        args = {"img_size": size, **args}
    try:
        if weights is not None:
            model = _from_file(name, args, config, weights)
        elif pretrained:
            model = _from_hub(name, args, config)
        else:
            model = timm.create_model(name, pretrained=False, num_classes=0, **args)
    except (TypeError, ValueError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"timm:{name} cannot be built: {error}") from error
    try:
        backbone = TimmBackbone(model, size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"timm:{name} fails on images of 3 x {size} x {size}: {error}") from error
    return backbone, _preprocessing(config, trained_size)


def _from_file(name: str, args: dict[str, Any], config: Mapping[str, Any], path: str) -> nn.Module:
    import timm

    state = read_weights(path)
    # Built with as many classes as the file has, because only then does timm load strictly; through timm's own
    # loading, because it converts the key names of the original authors' files and resamples position embeddings.
    classes = _classes_in(state, config)
    overlay = {
        "state_dict": state,
        "num_classes": classes,
        "custom_load": False,
        "label_offset": 0,
    }
    try:
        model: Any = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **args
        )
    except (RuntimeError, KeyError) as error:
        raise InputError(f"weights: {path} does not match timm:{name}. {error}") from error
    if classes:
        model.reset_classifier(0)
    return model


def _classes_in(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """How many classes the classifier in a state dict has; 0 when there is none."""
    names = config.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        for key in (
            f"{name}.weight",
            f"{name.split('.')[0]}.weight",
        ):  # head.fc is head in some original files
            if key in state and state[key].ndim > 1:
                return state[key].shape[0]
    return 0


def _from_hub(name: str, args: dict[str, Any], config: Mapping[str, Any]) -> nn.Module:
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    repo, url = config.get("hf_hub_id"), config.get("url")
    if not (repo or url):
        tags = ", ".join(timm.list_pretrained(name.split(".")[0] + "*")[:4])
        raise InputError(
            f"pretrained: there are no weights for timm:{name}" + (f"; there are for {tags}" if tags else "")
        )
    overlay = None
    if repo:
        cached = try_to_load_from_cache(repo, config.get("hf_hub_filename") or "model.safetensors")
        if isinstance(cached, str) and not config.get("custom_load"):
            overlay = {"file": cached}  # asks no server whether there is something newer
    server = constants.ENDPOINT if repo else str(url)
    if overlay is None and not reachable(server):
        raise no_download(f"timm:{name}", server)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **args)


def _preprocessing(config: Mapping[str, Any], size: int) -> Preprocessing:
    resize = math.floor(size / (config.get("crop_pct") or 1.0))  # as timm's own evaluation transform has it
    mean, std = config.get("mean", IMAGENET.mean), config.get("std", IMAGENET.std)
    return Preprocessing(size, max(resize, size), mean, std, config.get("interpolation", "bicubic"))

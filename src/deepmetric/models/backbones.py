"""Names of backbones -> modules that turn images into features."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepmetric.errors import InputError, did_you_mean
from deepmetric.models.dotted import module_class
from deepmetric.models.preprocessing import IMAGENET, Preprocessing
from deepmetric.models.weights import load_exactly, read_weights


def build_backbone(
    name: str,
    args: dict[str, Any] | None = None,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    size: int | None = None,
) -> tuple[nn.Module, Preprocessing]:
    """A backbone and the preprocessing it was made for.

    The module takes normalised images [B, 3, H, W] and gives a feature map [B, C, h, w] or pooled features [B, C].

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, or the dotted path of an ``nn.Module`` class. Such a class says
            which preprocessing it wants in an attribute ``preprocessing``
            (:class:`~deepmetric.models.preprocessing.Preprocessing`); without it that of ImageNet at 224 is taken.
        args: arguments for the network's constructor.
        pretrained: take the source's published weights (downloaded on first use).
        weights: a local .safetensors or .pth file in their place.
        size: side of the images, for networks that are built for one size.

    Raises:
        InputError: unknown name, wrong argument, weights that cannot be had or do not match.
    """
    args = dict(args or {})
    if pretrained and weights is not None:
        raise InputError("pretrained: true and weights: a file exclude each other; leave one of them out")
    source, colon, model = name.partition(":")
    if colon and source == "timm":
        from deepmetric.models.timm_backbone import timm_backbone

        return timm_backbone(model, args, pretrained, weights, size)
    if colon and source == "torchvision":
        from deepmetric.models.torchvision_backbone import torchvision_backbone

        return torchvision_backbone(model, args, pretrained, weights, size)
    if colon or "." not in name:
        raise InputError(
            f"unknown backbone {name!r}: expected timm:NAME, torchvision:NAME or the dotted path of a class"
            f" such as deepmetric.models.ConvNet{_with_source(model if colon else name)}"
        )
    if pretrained:
        raise InputError(
            f"pretrained: {name} has no published weights; give a file as weights: PATH or leave it out"
        )
    cls = module_class(name, "backbone")
    try:
        backbone = cls(**args)
    except TypeError as error:
        raise InputError(f"backbone {name} cannot be built with {args}: {error}") from error
    if weights is not None:
        state = read_weights(weights)
        adapt = getattr(backbone, "adapt_weights", None)  # for files that other programs have made
        load_exactly(backbone, state if adapt is None else adapt(state), weights)
    return backbone, getattr(backbone, "preprocessing", IMAGENET)


def _with_source(name: str) -> str:
    """The way out for a name without its source: where that name is known, or the nearest to it."""
    import timm
    import torchvision.models as zoo

    known = {f"timm:{x}" for x in timm.list_models()} | {
        f"torchvision:{x}" for x in zoo.list_models(module=zoo)
    }
    exact = [full for full in (f"timm:{name}", f"torchvision:{name}") if full in known]
    if exact:
        return f". Did you mean {' or '.join(map(repr, exact))}?"
    return "." + did_you_mean(f"timm:{name}", [*known, "deepmetric.models.ConvNet"])

"""The model: images -> embeddings, with everything that is needed to use it again."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepmetric.errors import InputError
from deepmetric.models.backbones import build_backbone
from deepmetric.models.dotted import dotted_path
from deepmetric.models.embed import embed
from deepmetric.models.head import Head
from deepmetric.models.inputs import EmbedInput
from deepmetric.models.parts import unit_rows
from deepmetric.models.pooling import make_pooling
from deepmetric.models.preprocessing import Preprocessing
from deepmetric.models.storage import MODEL_CARD, fill_from_file, find_weights, put_in_place

Pooling = Literal["avg", "max", "avg+max", "gem"]


class EmbeddingModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="deepmetric",
    pipeline_tag="image-feature-extraction",
    tags=["metric-learning", "image-retrieval"],
    model_card_template=MODEL_CARD,
):
    """Backbone, pooling, head, L2 normalisation, and the preprocessing that the backbone expects.

    Args:
        backbone: ``timm:NAME``, ``torchvision:NAME``, or the dotted path of an ``nn.Module`` class that maps images
            [B, 3, H, W] to a feature map [B, C, h, w] or to features [B, C].
        backbone_args: arguments for the backbone's constructor.
        pretrained: start from the published weights of timm or torchvision.
        weights: start from a local .safetensors or .pth file of the backbone.
        pooling: feature map -> vector: avg, max, avg+max (their sum) or gem. A backbone that pools by itself
            (transformers with tokens) allows only avg, which then means: its own way.
        embedding_dim: width of the embedding; null: no head, the pooled features are the embedding. As an attribute it
            is the width in either case.
        hidden_dim: width of a hidden layer (linear, ReLU) in the head; null: none.
        layer_norm: LayerNorm without parameters before the head's last layer.
        normalize: L2-normalise the embedding (in float32).
        freeze_batchnorm: batch normalisation keeps its running statistics and its scale and shift, also in training.
        size: side of the square input in pixels; null, here and below: what the backbone was made for.
        resize: the image's shorter side is brought to this before the centre crop of ``size``.
        mean: per channel, for pixels in [0, 1].
        std: per channel; may be negative to invert (mean 1, std -1 turns dark on light into light on dark).
        interpolation: nearest, nearest-exact, bilinear or bicubic.
        bgr: the backbone gets the channels as B, G, R; mean and std are those of R, G, B in any case.

    Attributes:
        backbone, pooling, head: the parts that hold parameters.
        preprocessing: size, resize, mean, std, interpolation and bgr as resolved.

    Raises:
        InputError: an argument that is wrong, or weights that cannot be had or do not match.

    Example:
        >>> model = EmbeddingModel(embedding_dim=16).eval()
        >>> model.embed([np.zeros((40, 40, 3), np.uint8), np.zeros((50, 40), np.uint8)]).shape
        (2, 16)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "deepmetric.models.ConvNet",
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        pooling: Pooling = "avg",
        embedding_dim: int | None = 128,
        hidden_dim: int | None = None,
        layer_norm: bool = False,
        normalize: bool = True,
        freeze_batchnorm: bool = False,
        size: int | None = None,
        resize: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str | None = None,
        bgr: bool | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.freeze_batchnorm = freeze_batchnorm
        self.pooling = make_pooling(pooling)
        self.backbone, wanted = build_backbone(
            backbone, backbone_args, pretrained=pretrained, weights=weights, size=size
        )
        self.preprocessing: Preprocessing = wanted.override(size, resize, mean, std, interpolation, bgr)
        # As buffers they move with the model; not saved, because they are settings, kept in the config.
        self.register_buffer("mean", torch.tensor(self.preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocessing.std).view(3, 1, 1), persistent=False)
        width = self._dry_run(backbone, pooling)
        if embedding_dim is None:
            if hidden_dim is not None or layer_norm:
                raise InputError(
                    "hidden_dim and layer_norm belong to the head, which embedding_dim: null leaves out"
                )
            self.head: nn.Module = nn.Identity()
        else:
            self.head = Head(width, embedding_dim, hidden_dim, layer_norm)
        self.embedding_dim: int = width if embedding_dim is None else embedding_dim
        self._remember(backbone_args)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, embedding_dim], float32 and of unit length when ``normalize`` is set.

        Args:
            images: uint8 [B, 3, H, W] in 0-255, normalised here; a floating tensor is taken as already normalised.

        Raises:
            InputError: another shape or dtype; a size that the backbone does not take.
        """
        embeddings = self.head(self._features(self._normalised(images)))
        return unit_rows(embeddings) if self.normalize else embeddings

    def embed(
        self,
        inputs: EmbedInput,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Embeddings of images, float32 [N, embedding_dim], in the order of ``inputs``.

        In evaluation mode, with this model's preprocessing; modes and device are put back afterwards.

        Args:
            inputs: paths, PIL images, uint8 arrays ([H, W], [H, W, 3] or [H, W, 4]), mixed as they come; one of
                these alone; or a :class:`deepmetric.data.Dataset`, whose own transform is left out.
            batch_size: images in one pass; halved for a batch that does not fit in the accelerator's memory.
            device: where to compute; None: where the model is.
            progress: show a progress bar.

        Raises:
            InputError: an item of another kind; ``UnreadableImage`` names a file that is no image.
        """
        return embed(self, inputs, batch_size=batch_size, device=device, progress=progress)

    def train(self, mode: bool = True) -> EmbeddingModel:
        """As in torch; with ``freeze_batchnorm`` batch normalisation stays in evaluation mode, each time."""
        super().train(mode)
        if self.freeze_batchnorm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval().requires_grad_(False)
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and a model card into a folder.

        Each file is either the old one or the new one at any moment. The config holds the preprocessing as resolved,
        ``class_path``, and neither ``pretrained`` nor ``weights``, so that loading needs nothing else.
        ``push_to_hub=True`` and the other arguments are those of ``huggingface_hub.PyTorchModelHubMixin``.
        """
        folder = Path(save_directory)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", folder.name)
        with put_in_place(folder) as fresh:
            return super().save_pretrained(fresh, **kwargs)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **kwargs: Any
    ) -> EmbeddingModel:
        hub = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        weights = find_weights(model_id, **{name: kwargs.pop(name, None) for name in hub})
        kwargs.pop("class_path", None)  # handed over to subclasses that take **kwargs
        model = cls(**kwargs)
        fill_from_file(model, weights, strict=strict)
        return model.to(map_location).eval()

    def _normalised(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images have shape {tuple(images.shape)}; expected [B, 3, H, W]")
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise InputError(
                f"images are {images.dtype}; expected uint8 (0-255), or floating and already normalised"
            )
        if images.is_cpu:
            images = images.contiguous(memory_format=self._layout)
        if images.is_floating_point():
            return images
        normalised = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        return normalised.flip(1) if self.preprocessing.bgr else normalised

    def _features(self, images: Tensor) -> Tensor:
        """Normalised images -> pooled features [B, width]."""
        size = self.preprocessing.size
        try:
            features = self.backbone(images)
        except (AssertionError, RuntimeError) as error:  # how timm and torchvision refuse a size
            if images.shape[2:] == (size, size) or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise InputError(
                f"the backbone fails on images of {images.shape[2]} x {images.shape[3]}: {error} The model was built "
                f"for {size} x {size}; give images of that size (in training: the augmentation's crop), or set `size`."
            ) from error
        if features.ndim == 2:
            return features
        pooled = self.pooling(features)
        # What timm's models have between pooling and classifier; other backbones have nothing there.
        after = getattr(self.backbone, "after_pooling", None)
        return pooled if after is None else after(pooled)

    @torch.no_grad()
    def _dry_run(self, backbone: str, pooling: str) -> int:
        """The width of the features. What networks declare of themselves is not always so; what they give is."""
        self.eval()
        size = self.preprocessing.size
        images = torch.zeros(1, 3, size, size).contiguous(memory_format=torch.channels_last)
        # On a CPU a network takes 0.6 to 1.0 of its time in this layout (benchmarks/layout.py); one that calls view()
        # on its maps cannot have it.
        self._layout = torch.channels_last
        try:
            try:
                features = self.backbone(images)
            except RuntimeError:
                self._layout = torch.contiguous_format
                images = images.contiguous()
                features = self.backbone(images)
        except InputError:
            raise
        except Exception as error:  # a user's network may fail in any way
            raise InputError(
                f"backbone {backbone} fails on an image of {size} x {size} pixels: {error}"
            ) from error
        if not isinstance(features, Tensor) or features.ndim not in (2, 4):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(
                f"backbone {backbone} gives {found}; expected a feature map [B, C, h, w] or features [B, C]"
            )
        if features.ndim == 2:
            if pooling != "avg":
                raise InputError(
                    f"pooling: {pooling} cannot be applied: {backbone} pools by itself and gives features "
                    f"{tuple(features.shape)}; leave pooling at avg, which then means the backbone's own way"
                )
            self.pooling = nn.Identity()
        return self._features(images).shape[1]

    def _remember(self, backbone_args: dict[str, Any] | None) -> None:
        """Put into the config, which the mixin filled with the arguments, what loading needs instead."""
        config: dict[str, Any] = dict(self._hub_mixin_config or {})  # type: ignore[arg-type]
        resolved = {
            "backbone_args": dict(backbone_args or {}),
            "pretrained": False,
            "weights": None,
            "size": self.preprocessing.size,
            "resize": self.preprocessing.resize,
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
            "interpolation": self.preprocessing.interpolation,
            "bgr": self.preprocessing.bgr,
        }
        # A subclass may have other arguments; it gets back only its own, or all where it hands **kwargs on.
        parameters = inspect.signature(type(self).__init__).parameters.values()
        hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        config.update({name: value for name, value in resolved.items() if hands_on or name in config})
        config["class_path"] = dotted_path(type(self))
        self._hub_mixin_config = config

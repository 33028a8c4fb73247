"""The model of HDC: a backbone tapped at several depths, an embedding from each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError, check_choice, check_widths
from deepmetric.models.embedding import EmbeddingModel
from deepmetric.models.head import Head
from deepmetric.models.parts import side_by_side
from deepmetric.models.pooling import make_pooling
from deepmetric.models.taps import Taps, as_map, stages_of

Heads = Literal["pooled", "googlenet"]


class HDCModel(EmbeddingModel):
    """Embeddings from several depths of one backbone side by side, each L2-normalised, together of unit length.

    Yuan, Yang, Zhang, "Hard-Aware Deeply Cascaded Embedding", ICCV 2017; with :class:`deepmetric.losses.HDCLoss`, which
    trains each level on the hard pairs that the level before hands over. The published test embedding is the
    concatenation of the unit parts; here it is divided by the square root of their number, which changes no ranking.

    Args:
        dims: width of each level's embedding, the shallowest first.
        taps: dotted names of the modules inside the backbone whose output the levels but the last take; the last level
            has the backbone's own output. null: the ends of the stages before the last one.
        heads: "pooled": ``pooling`` and a head as of :class:`EmbeddingModel` at every level. "googlenet": the paper's
            (at taps 5 x 5 average pooling of stride 3, 1 x 1 convolution to 128, a layer of 1024, dropout 0.7, the
            embedding; dropout 0.4 at the last level), for maps of at least 5 x 5 and images of the model's ``size``.
        kwargs: those of EmbeddingModel but ``embedding_dim`` and ``normalize``.

    Attributes:
        embedding_dim: Σ dims.
        tap_heads: feature map -> part of the embedding, for each tap.

    Raises:
        InputError: as of EmbeddingModel; a tap that the backbone does not have or that gives no feature map; another
            number of taps than of dims, less one.
    """

    def __init__(
        self,
        dims: Sequence[int] = (128, 128, 128),
        taps: list[str] | None = None,
        heads: Heads = "pooled",
        **kwargs: Any,
    ) -> None:
        check_choice("HDCModel", "heads", heads, Heads)
        widths = check_widths("HDCModel", "dims", dims)
        super().__init__(embedding_dim=widths[-1], normalize=True, **kwargs)
        self.dims = widths
        names = self._inner_stages(len(widths) - 1) if taps is None else list(taps)
        if len(names) != len(widths) - 1:
            raise InputError(
                f"HDCModel has {len(widths)} dims and {len(names)} taps ({', '.join(names)}); expected a tap for each "
                "dim but the last, which takes the backbone's output"
            )
        self._taps = Taps(self.backbone, names)
        self._channels_last = bool(getattr(self.backbone, "channels_last", False))
        settings = {key: kwargs.get(key) for key in ("pooling", "hidden_dim", "layer_norm")}
        self.tap_heads = nn.ModuleList(
            _googlenet_head(width, *shape)
            if heads == "googlenet"
            else _pooled_head(width, shape[0], **settings)
            for width, shape in zip(widths, self._shapes())
        )
        if heads == "googlenet":
            self.head = nn.Sequential(nn.Dropout(0.4), self.head)
        self.embedding_dim = sum(widths)
        self._hub_mixin_config = {**(self._hub_mixin_config or {}), "taps": names}  # type: ignore[dict-item]
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings float32 [B, Σ dims] of unit length; see :meth:`EmbeddingModel.forward`."""
        features, maps = self._tapped(self._normalised(images))
        parts = [head(tapped) for head, tapped in zip(self.tap_heads, maps)]
        return side_by_side([*parts, self.head(features)])

    def _tapped(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalised images -> the backbone's pooled features and the maps [B, C, h, w] at the taps."""
        with self._taps.listening() as heard:
            features = self._features(images)
        silent = [name for name in self._taps.names if name not in heard]
        if silent:
            raise InputError(
                f"taps: {', '.join(silent)} did not run when the backbone did; tap another module"
            )
        return features, [as_map(heard[name], name, self._channels_last) for name in self._taps.names]

    def _inner_stages(self, count: int) -> list[str]:
        stages = stages_of(self.backbone)
        if len(stages) <= count:
            raise InputError(
                f"HDCModel with {count + 1} dims needs a backbone of as many stages; this one has {len(stages)} "
                f"({', '.join(stages)}). Give fewer dims, or name the taps."
            )
        return stages[-1 - count : -1]

    @torch.no_grad()
    def _shapes(self) -> list[tuple[int, int, int]]:
        """(C, h, w) at each tap."""
        self.eval()
        size = self.preprocessing.size
        _, maps = self._tapped(torch.zeros(1, 3, size, size))
        return [(tapped.shape[1], tapped.shape[2], tapped.shape[3]) for tapped in maps]


def _pooled_head(
    width: int, channels: int, *, pooling: str | None, hidden_dim: int | None, layer_norm: bool | None
) -> nn.Module:
    return nn.Sequential(make_pooling(pooling or "avg"), Head(channels, width, hidden_dim, bool(layer_norm)))


def _googlenet_head(width: int, channels: int, height: int, breadth: int) -> nn.Module:
    if min(height, breadth) < 5:
        raise InputError(
            f"heads: googlenet needs maps of at least 5 x 5 at the taps, got {height} x {breadth}; give larger images "
            "or heads: pooled"
        )
    positions = ((height - 5) // 3 + 1) * ((breadth - 5) // 3 + 1)
    return nn.Sequential(
        nn.AvgPool2d(5, stride=3),
        nn.Conv2d(channels, 128, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128 * positions, 1024),
        nn.ReLU(),
        nn.Dropout(0.7),
        nn.Linear(1024, width),
    )

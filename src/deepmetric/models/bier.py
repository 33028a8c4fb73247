"""The model of BIER and A-BIER: one embedding layer whose units fall into groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deepmetric.errors import check_widths
from deepmetric.models.embedding import EmbeddingModel
from deepmetric.models.parts import side_by_side


class BIERModel(EmbeddingModel):
    """An embedding of groups, each L2-normalised and weighted by its share of the width.

    Opitz, Waltner, Possegger, Bischof, "BIER: Boosting Independent Embeddings Robustly", ICCV 2017; with
    :class:`deepmetric.losses.BIERLoss`, which trains the groups. Group m of width d_m is scaled to d_m / Σ d, as in the
    authors' evaluation; in a dot product, and so in every search, that weight is **squared**: 96, 160 and 256 units
    count 0.1875² : 0.3125² : 0.5². Rows as a whole are then brought to unit length, which changes no ranking.

    Args:
        groups: width of each group; the papers let them increase.
        kwargs: those of :class:`EmbeddingModel` but ``embedding_dim`` and ``normalize``.

    Raises:
        InputError: as of EmbeddingModel; no group, or one of width below 1.
    """

    def __init__(self, groups: Sequence[int] = (96, 160, 256), **kwargs: Any) -> None:
        self_groups = check_widths("BIERModel", "groups", groups)
        super().__init__(embedding_dim=sum(self_groups), normalize=True, **kwargs)
        self.groups = self_groups

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings float32 [B, Σ groups] of unit length; see :meth:`EmbeddingModel.forward`."""
        embeddings = self.head(self._features(self._normalised(images)))
        return side_by_side(embeddings.split(self.groups, 1), self.groups)

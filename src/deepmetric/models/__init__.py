"""Images to embeddings: backbone, pooling, head, and the preprocessing that belongs to them.

:class:`EmbeddingModel` is the whole; :class:`ConvNet` is the small backbone for tiny images, :class:`BNInception`
that of the published tables. A trained model is a folder that :func:`deepmetric.load` opens.
"""

from __future__ import annotations

from deepmetric.models.bier import BIERModel
from deepmetric.models.bn_inception import BNInception
from deepmetric.models.convnet import ConvNet
from deepmetric.models.embedding import EmbeddingModel
from deepmetric.models.hdc import HDCModel
from deepmetric.models.pooling import GeM
from deepmetric.models.preprocessing import Preprocessing

__all__ = ["BIERModel", "BNInception", "ConvNet", "EmbeddingModel", "GeM", "HDCModel", "Preprocessing"]

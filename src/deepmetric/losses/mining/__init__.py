"""Which pairs or triplets of a batch to learn from, as index tensors, for users who bring their own loss.

Every miner is called as ``miner(embeddings, labels, **settings)``, or against a reference set as
``miner(embeddings, labels, ref_emb, ref_labels, self_index, **settings)``, with the shapes and checks of
:class:`deepmetric.losses.PairLoss`. What it returns indexes the anchors and the references (the batch itself
without a reference set), as int64 on the device of the embeddings; nothing in it has a gradient. Rows are
L2-normalised unless ``normalize=False``. The order of the indices carries no meaning.

Miners look at a block of anchors at a time: memory is that of the result and of a few million numbers,
never of N x M x M. The losses of this package do not need them: they mine within their own pass.

>>> import torch
>>> from deepmetric.losses import mining
>>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
>>> y = torch.tensor([0, 0, 1])
>>> anchor, positive, negative = mining.triplet_margin(x, y, margin=0.1)
>>> (anchor.tolist(), positive.tolist(), negative.tolist())  # only anchor 1 has its negative that near
([1], [0], [2])
>>> my_loss = ((x[anchor] - x[positive]).norm(dim=1) - (x[anchor] - x[negative]).norm(dim=1)).sum()
"""

from __future__ import annotations

from deepmetric.losses.mining.indices import PairIndices, Triplets
from deepmetric.losses.mining.pairs import hdc, multi_similarity, pair_margin
from deepmetric.losses.mining.per_anchor import batch_easy_hard, batch_hard, n_hard
from deepmetric.losses.mining.triplets import angular, triplet_margin

__all__ = [
    "PairIndices",
    "Triplets",
    "angular",
    "batch_easy_hard",
    "batch_hard",
    "hdc",
    "multi_similarity",
    "n_hard",
    "pair_margin",
    "triplet_margin",
]

"""General Pair Weighting (Wang et al. 2019): a loss given by the weights of its pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from deepmetric.losses.base import PairLoss
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.sums import Elementwise


class GeneralPairWeighting(PairLoss):
    r"""Base of losses that are defined by two functions: the weights of positives and of negatives.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, eq. 4.
    Rows are L2-normalised, S is the cosine. With the weights w as constants, the loss is

        L = 1/N Σ_i ( Σ_n w_in S_in - Σ_p w_ip S_ip )

    Its gradient is that of every loss whose derivative by S is w/N on negatives and -w/N on positives, whether
    or not such a loss can be written down. Its value is not that loss's, and may be of either sign: watch the
    retrieval metrics instead.

    A subclass writes :meth:`positive_weight` and :meth:`negative_weight`, and :meth:`statistics` if a weight
    depends on the anchor's other pairs. They are called tile by tile, so that a memory of any size will do.

    Anchors without pairs cost 0; without any pair the loss is 0 with zero gradient.

    Exponentially weighted pairs, and multi-similarity (without its mining) as an example of statistics:

    >>> class Exponential(GeneralPairWeighting):
    ...     def positive_weight(self, similarity):
    ...         return torch.exp(-2 * similarity)
    ...     def negative_weight(self, similarity):
    ...         return torch.exp(10 * (similarity - 1))
    >>> class MultiSimilarity(GeneralPairWeighting):  # alpha 2, beta 40, base 0.5
    ...     def statistics(self, pairs):
    ...         positives = pairs.positives.logsumexp(-2.0) + 2 * 0.5
    ...         negatives = pairs.negatives.logsumexp(40.0) - 40 * 0.5
    ...         return torch.nn.functional.softplus(positives), torch.nn.functional.softplus(negatives)
    ...     def positive_weight(self, similarity, positives, negatives):
    ...         return torch.exp(-2 * (similarity - 0.5) - positives)
    ...     def negative_weight(self, similarity, positives, negatives):
    ...         return torch.exp(40 * (similarity - 0.5) - negatives)
    >>> from deepmetric.losses import MultiSimilarityLoss
    >>> x, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 0, 0, 1, 1, 2])
    >>> (ours,) = torch.autograd.grad(MultiSimilarity()(x, labels), x)
    >>> (theirs,) = torch.autograd.grad(MultiSimilarityLoss(2, 40, 0.5, epsilon=None)(x, labels), x)
    >>> torch.allclose(ours, theirs, atol=1e-6)
    True
    """

    over_parts = True

    def positive_weight(self, similarity: Tensor, *statistics: Tensor) -> Tensor:
        """Weights of positives, elementwise.

        Args:
            similarity: cosines, of any shape; not to be changed in place.
            statistics: what :meth:`statistics` returned, each of a shape that broadcasts with the cosines.

        Returns:
            Weights of the shape of ``similarity``, finite for every cosine (also of pairs that are no
            positives, which are left out afterwards). No gradient is taken through them.
        """
        raise NotImplementedError

    def negative_weight(self, similarity: Tensor, *statistics: Tensor) -> Tensor:
        """Weights of negatives, as :meth:`positive_weight`."""
        raise NotImplementedError

    def statistics(self, pairs: Comparison) -> tuple[Tensor, ...]:
        """Numbers of each anchor, [N] each, that the weights depend on: none unless overridden.

        ``pairs.positives`` and ``pairs.negatives`` give them: ``logsumexp(scale)``, ``max()``, ``min()``,
        ``sum(function)``, ``hinge_sum(threshold, above=...)``; ``pairs.positive_count`` and
        ``pairs.negative_count`` count. Over no pair a log-sum-exp and a maximum are -inf, a minimum inf. No
        gradient is taken through them.
        """
        return ()

    def of_batch(self, batch: Batch) -> Tensor:
        pairs = Comparison(*batch)
        with torch.no_grad():
            statistics = self.statistics(pairs)
        positives = pairs.positives.sum(_weighted(self.positive_weight), *statistics)
        negatives = pairs.negatives.sum(_weighted(self.negative_weight), *statistics)
        return (negatives - positives).sum() / max(len(batch.anchors), 1)


def _weighted(weight: Elementwise) -> Elementwise:
    """The function w(S) S, with w as a constant."""

    def weighted(similarity: Tensor, *statistics: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = weight(similarity, *statistics)
        return fixed * similarity

    return weighted

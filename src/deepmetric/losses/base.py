"""The one interface of all pair losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepmetric.losses.inputs import Batch, checked_batch
from deepmetric.losses.streamed.gradients import without_autocast
from deepmetric.losses.streamed.processes import Processes


class PairLoss(nn.Module):
    """A loss of labelled embeddings, each item compared with the others or with a reference set.

    A subclass writes :meth:`of_batch`; checks, dtypes and autocast are settled here, once.

    Within one process unless :func:`~deepmetric.losses.across_processes` has set ``processes``: then every
    argument is this process's part of one argument of all processes, joined in the order of ranks.
    """

    processes: Processes | None = None
    # Whether `of_batch` knows that over several processes ``batch.refs`` is a part of the references; else they are
    # gathered. Right for a loss that is made of a ``Comparison(*batch)`` and its reductions of anchors,
    # ``len(batch.anchors)`` and ``batch.labels``.
    over_parts: bool = False

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        self_index: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar of float32 (float64 for float64 input) that is always attached to the graph; NaN if an
        embedding is NaN or infinite.

        Args:
            embeddings: anchors [N, d], floating point; half precision and autocast are computed in float32.
            labels: [N] integers; items of one label are positives of each other.
            ref_emb: references [M, d]; without them the anchors are compared with each other, self-pairs left
                out.
            ref_labels: [M] integers, needed with ``ref_emb``.
            self_index: [N] integers, where among the references anchor i's own copy stands, -1 where it has
                none. That pair is left out. Exact copies elsewhere are ordinary pairs. (Over several processes
                positions count through the references of all of them.)

        Raises:
            InputError: shapes, lengths, dtypes or devices that do not fit each other.
        """
        batch = checked_batch(embeddings, labels, ref_emb, ref_labels, self_index, self.processes)
        if not self.over_parts:
            batch = batch.gathered()
        with without_autocast(embeddings.device):
            # Comparisons with NaN are false: what mines or clamps would make a loss like any other of it. 0 times a sum
            # is 0 or NaN.
            return torch.add(self.of_batch(batch), batch.anchors.detach().sum(), alpha=0)

    def of_batch(self, batch: Batch) -> Tensor:
        """The loss of checked input.

        Over several processes every argument is of all processes, everywhere alike, but with ``over_parts`` the
        references are those of this process and ``batch.processes`` is set.
        """
        raise NotImplementedError

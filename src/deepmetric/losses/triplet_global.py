"""Triplet and global loss of given triplets (Kumar et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.losses.inputs import checked_batch
from deepmetric.losses.streamed.gradients import without_autocast
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.rows import unit_rows


class TripletGlobalLoss(nn.Module):
    r"""Triplet loss, plus a global loss that parts the distributions of positive and of negative distances.

    The global loss is that of Kumar B G, Carneiro, Reid, "Learning Local Image Descriptors with Deep Siamese and
    Triplet Convolutional Networks by Minimising Global Loss Functions", CVPR 2016; the combination is used by Harwood
    et al., "Smart Mining for Deep Metric Learning", ICCV 2017. The rows are triplets: anchor, positive, negative,
    anchor, positive, negative, ..., as :class:`deepmetric.data.TripletSampler` deals them. With T triplets of
    L2-normalised rows and squared distances D²,

        L = 1/T Σ [ D²_ap - D²_an + m ]_+  +  w ( σ²₊ + σ²₋ + λ [ μ₊ - μ₋ + t ]_+ )

    where μ₊, σ²₊ are the mean and the (biased) variance of D²/4 in [0, 1] over the T positive pairs, and μ₋, σ²₋ over
    the T negative ones.

    A reconstruction: the defaults of m, λ and t, the squared distance in the triplet term and the plain sum of
    both losses are not verified against the papers.

    Args:
        margin: m.
        global_weight: w; 0 leaves the triplet loss alone.
        mean_weight: λ.
        mean_margin: t.

    Over several processes each has whole triplets.

    No rows: loss 0 with zero gradient. One triplet: its variances are 0. Range [0, ∞).

    GPW weight, before the slope -2 of D² in the similarity: 1/T of an active triplet on both its pairs; of the global
    part (D² - 4μ₊) / (8 T) + λ/(4 T) on a positive pair, (D² - 4μ₋) / (8 T) - λ/(4 T) on a negative one, the λ where
    the mean hinge is active. A positive pair nearer than the mean is pushed apart where that is negative.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> round(TripletGlobalLoss(margin=0.5)(x, torch.tensor([0, 0, 1])).item(), 4)  # 0.1 + 0.8 (0.1 - 0.2 + 0.4)
    0.34
    """

    def __init__(
        self,
        margin: float = 0.01,
        global_weight: float = 1.0,
        mean_weight: float = 0.8,
        mean_margin: float = 0.4,
    ) -> None:
        super().__init__()
        # Set by `deepmetric.losses.across_processes`.
        self.processes: Processes | None = None
        self.margin, self.global_weight = margin, global_weight
        self.mean_weight, self.mean_margin = mean_weight, mean_margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar of float32 (float64 for float64 input).

        Args:
            embeddings: [3 T, d] floating point, triplet after triplet.
            labels: [3 T] integers.

        Raises:
            InputError: rows that are no triplets, or shapes and dtypes that do not fit each other.
        """
        if self.processes is not None:
            embeddings, labels = self.processes.gather(embeddings), self.processes.gather(labels)
        with without_autocast(embeddings.device):
            to_positive, to_negative = self.distances(embeddings, labels)
            if not len(to_positive):
                return to_positive.sum()
            triplet = (to_positive - to_negative + self.margin).relu().mean()
            positive, negative = to_positive / 4, to_negative / 4
            means = (positive.mean() - negative.mean() + self.mean_margin).relu()
            spread = positive.var(correction=0) + negative.var(correction=0)
            return triplet + self.global_weight * (spread + self.mean_weight * means)

    def distances(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances D²_ap and D²_an of the T triplets, [T] each, in [0, 4]."""
        batch = checked_batch(embeddings, labels)
        if len(labels) % 3:
            raise InputError(
                f"TripletGlobalLoss takes anchor, positive, negative, ...; got {len(labels)} rows."
            )
        a, p, n = batch.labels.reshape(-1, 3).unbind(1)
        wrong = ((a != p) | (a == n)).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise InputError(
                f"rows {3 * first} to {3 * first + 2} are no triplet: their labels are {int(a[first])}, "
                f"{int(p[first])}, {int(n[first])}; expected anchor, positive, negative. Use the sampler "
                f"deepmetric.data.TripletSampler."
            )
        anchor, positive, negative = unit_rows(batch.anchors).unflatten(0, (-1, 3)).unbind(1)
        return (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, global_weight={self.global_weight}, mean_weight={self.mean_weight}, "
            f"mean_margin={self.mean_margin}"
        )

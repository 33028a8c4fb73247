"""What backward passes owe their caller: full precision, and no second derivatives that are wrong."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmetric.errors import InputError
from deepmetric.losses import (
    ContrastiveLoss,
    GlobalOrthogonalLoss,
    IntraPairVarianceLoss,
    MultiSimilarityLoss,
    NPairsLoss,
    TripletLoss,
)

LOSSES = [
    ContrastiveLoss(negative_margin=-1.0),
    MultiSimilarityLoss(epsilon=None),
    IntraPairVarianceLoss(),
    GlobalOrthogonalLoss(),
    TripletLoss(5.0, "all", normalize=False),
    NPairsLoss("all"),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("n", [16, 260])  # one matrix, and tiles
def test_backward_may_stand_in_autocast(loss, n: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, refs = (torch.randn(n, 8, generator=g).requires_grad_() for _ in range(2))
    labels = torch.arange(n) % (n // 4)
    for given, leaves in (((x, labels), (x,)), ((x, labels, refs, labels), (x, refs))):
        wanted = torch.autograd.grad(loss(*given), leaves)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = torch.autograd.grad(loss(*given), leaves)
        for gradient, other in zip(found, wanted):
            assert_close(gradient, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_second_derivatives_are_refused(loss) -> None:
    """Also those of a loss whose gradient for the values is a constant, and where rows are reached in two ways."""
    x, labels = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) // 2
    with pytest.raises(InputError, match="create_graph"):
        torch.autograd.functional.hessian(lambda rows: loss(rows, labels), x)

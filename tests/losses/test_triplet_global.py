import pytest
import torch
from torch.nn.functional import normalize

from deepmetric.errors import InputError
from deepmetric.losses import TripletGlobalLoss


def triplets(seed, t):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([[k, k, k + 1] for k in range(t)]).reshape(-1)
    return torch.randn(3 * t, 5, generator=generator, dtype=torch.float64), labels


def by_loops(x, margin, weight, mean_weight, mean_margin):
    x = normalize(x, dim=1)
    near = [float((x[k] - x[k + 1]).square().sum()) for k in range(0, len(x), 3)]
    far = [float((x[k] - x[k + 2]).square().sum()) for k in range(0, len(x), 3)]
    t = len(near)
    triplet = sum(max(0.0, a - b + margin) for a, b in zip(near, far)) / t
    means = [sum(side) / t / 4 for side in (near, far)]
    spread = sum(sum((d / 4 - mean) ** 2 for d in side) / t for side, mean in zip((near, far), means))
    return triplet + weight * (spread + mean_weight * max(0.0, means[0] - means[1] + mean_margin))


@pytest.mark.parametrize("settings", [(0.01, 1.0, 0.8, 0.4), (0.5, 0.3, 1.5, 0.0), (0.2, 0.0, 0.8, 0.4)])
@pytest.mark.parametrize("t", [1, 7])
def test_equals_loops(settings, t):
    x, labels = triplets(t, t)
    assert float(TripletGlobalLoss(*settings)(x, labels)) == pytest.approx(by_loops(x, *settings), abs=1e-12)


def test_gradient_is_the_derivative_and_that_of_the_docstring():
    x, labels = triplets(0, 6)
    loss = TripletGlobalLoss(margin=0.3)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (x.requires_grad_(),))
    near, far = (d.detach().requires_grad_() for d in loss.distances(x, labels))
    loss.distances = lambda *_: (near, far)
    loss(x, labels).backward()
    active = (near - far + 0.3 > 0) / 6
    mean = 0.8 / 24 if near.mean() / 4 - far.mean() / 4 + 0.4 > 0 else 0
    torch.testing.assert_close(near.grad, active + (near - near.mean()) / 48 + mean)
    torch.testing.assert_close(far.grad, -active + (far - far.mean()) / 48 - mean)


def test_no_rows_half_precision_and_what_is_no_triplet():
    loss = TripletGlobalLoss()
    empty = torch.zeros(0, 4, requires_grad=True)
    value = loss(empty, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value == 0
    x, labels = triplets(0, 2)
    assert loss(x.half(), labels).dtype == torch.float32
    with pytest.raises(InputError, match="got 5 rows"):
        loss(x[:5], labels[:5])
    with pytest.raises(InputError, match="rows 3 to 5 are no triplet: their labels are 1, 1, 1"):
        loss(x, torch.tensor([0, 0, 1, 1, 1, 1]))


def test_no_rows_cost_nothing_in_float32():
    rows = torch.zeros(0, 4, dtype=torch.float16, requires_grad=True)
    value = TripletGlobalLoss()(rows, torch.zeros(0, dtype=torch.int64))
    assert (value.item(), value.dtype) == (0, torch.float32)
    assert torch.autograd.grad(value, rows)[0].shape == (0, 4)

"""HDC against pairs in plain lists, handed over level by level."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepmetric.errors import InputError
from deepmetric.losses import CrossBatchMemory, HDCLoss

Pairs = list[tuple[int, int]]


def hardest(pairs: Pairs, distance: Tensor, count: int, furthest: bool) -> Pairs:
    return sorted(pairs, key=lambda pair: distance[pair].item(), reverse=furthest)[:count]


def plain(
    rows: Tensor,
    labels: Tensor,
    dims: list[int],
    fractions: list[float],
    *,
    factor: float = 1.0,
    margin: float = 1.0,
    selection: str = "cascade",
    reduction: str = "joint",
) -> tuple[list[tuple[Pairs, Pairs]], list[Tensor]]:
    """The pairs of each level, and each level's loss, from sorted lists."""
    n = len(rows)
    every = [(i, j) for i in range(n) for j in range(n) if i != j]
    all_positives = [(i, j) for i, j in every if labels[i] == labels[j]]
    all_negatives = [(i, j) for i, j in every if labels[i] != labels[j]]
    positives, negatives, before = all_positives, all_negatives, None
    chosen, losses = [], []
    for part, fraction in zip(rows.split(dims, 1), fractions):
        x = normalize(part, dim=1)
        distance = (x[:, None] - x[None, :]).square().sum(2)
        if selection == "each":
            positives, negatives, before = all_positives, all_negatives, distance
        if before is not None:
            positives = hardest(positives, before, math.ceil(fraction * len(all_positives)), True)
            negatives = hardest(negatives, before, math.ceil(fraction * len(all_negatives)), False)
        chosen.append((positives, negatives))
        costs = [distance[pair] for pair in positives]
        pushes = [factor * (margin - distance[pair]) for pair in negatives if distance[pair] < margin]
        if reduction == "joint":
            losses.append(sum(costs + pushes) / max(len(costs) + len(pushes), 1))
        else:
            losses.append(sum(costs) / max(len(costs), 1) + sum(pushes) / max(len(pushes), 1))
        before = distance
    return chosen, losses


SETTINGS = [
    {},
    {"factor": 10.0, "selection": "each"},
    {"margin": 2.5, "reduction": "nonzero"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_plain_lists_in_value_and_gradient(random_batch, settings, seed):
    rows, labels = random_batch(seed, n=17, d=12)
    dims, fractions, weights = [3, 4, 5], [1.0, 0.5, 0.2], [1.0, 0.7, 2.0]
    rows.requires_grad_()
    _, losses = plain(rows, labels, dims, fractions, **settings)
    wanted = sum(weight * loss for weight, loss in zip(weights, losses))
    names = {"factor": "negative_weight"}
    loss = HDCLoss(
        dims, fractions, weights, **{names.get(key, key): value for key, value in settings.items()}
    )
    found = loss(rows, labels)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    (gradient,), (wanted_gradient,) = torch.autograd.grad(found, rows), torch.autograd.grad(wanted, rows)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_takes_exactly_the_pairs_that_the_one_before_lets_pass(random_batch, level):
    """Which pairs a level trains on, read off the gradient of its squared distances one pair at a time."""
    rows, labels = random_batch(5, n=14, d=12, classes=3)
    dims, fractions = [4, 4, 4], [1.0, 0.5, 0.2]
    (positives, negatives), *_ = plain(rows, labels, dims, fractions)[0][level:]
    every = [(i, j) for i in range(14) for j in range(14) if i != j]
    total = [sum(bool(labels[i] == labels[j]) == same for i, j in every) for same in (True, False)]
    # Shares of all pairs, not of those that were left.
    assert [len(positives), len(negatives)] == [math.ceil(fractions[level] * count) for count in total]
    weights = [float(k == level) for k in range(3)]
    x = normalize(rows.split(dims, 1)[level], dim=1)
    distance = (x[:, None] - x[None, :]).square().sum(2)
    costs = [distance[pair] for pair in positives] + [(5.0 - distance[pair]).relu() for pair in negatives]
    wanted = sum(costs) / len(costs)
    torch.testing.assert_close(HDCLoss(dims, fractions, weights, margin=5.0)(rows, labels), wanted)


def test_levels_share_no_gradient(random_batch):
    """The deeper level's pairs are chosen by the shallower one, which is not moved by it."""
    rows, labels = random_batch(6, n=12, d=8)
    rows.requires_grad_()
    (gradient,) = torch.autograd.grad(HDCLoss(fractions=[1.0, 0.5], weights=[0.0, 1.0])(rows, labels), rows)
    assert gradient[:, :4].abs().sum() == 0
    assert gradient[:, 4:].abs().sum() > 0


def test_the_shallower_level_decides_what_the_deeper_one_sees(random_batch):
    rows, labels = random_batch(7, n=16, d=8)
    other = torch.cat([random_batch(8, n=16, d=4)[0], rows[:, 4:]], 1)
    cascade = HDCLoss(fractions=[1.0, 0.3], weights=[0.0, 1.0])
    each = HDCLoss(fractions=[1.0, 0.3], weights=[0.0, 1.0], selection="each")
    assert cascade(rows, labels) != cascade(other, labels)
    assert each(rows, labels) == each(other, labels)


def test_one_pair_of_each_kind_is_always_kept():
    rows = torch.eye(4, dtype=torch.float64) + 0.1
    loss = HDCLoss(fractions=[1.0, 0.01], weights=[0.0, 1.0], reduction="nonzero", margin=4.0)
    x = normalize(rows[:, 2:], dim=1)
    to_positive = (x[0] - x[1]).square().sum()
    # Negatives are nearest at the shallow level between 2 or 3 and any other.
    assert loss(rows, torch.tensor([0, 0, 1, 2])) > to_positive


def test_with_a_memory(random_batch):
    rows, labels = random_batch(9, n=12, d=6)
    memory = CrossBatchMemory(HDCLoss(fractions=[1.0, 0.5]), dim=6, size=20)
    rows = rows.float().requires_grad_()
    memory(rows, labels).backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": [0.5, 0.2]}, "beginning with 1"),
        ({"fractions": [1.0, 0.2, 0.5]}, "none larger than the one before"),
        ({"fractions": []}, "beginning with 1"),
        ({"dims": [2, 2]}, "`dims` of HDCLoss are 2, `fractions` 3"),
        ({"dims": [2, 0, 2]}, "`dims` of HDCLoss is"),
        ({"weights": [1.0]}, "`weights` of HDCLoss are 1"),
        ({"selection": "casade"}, "Did you mean 'cascade'"),
        ({"negative_weight": -1.0}, "at least 0"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        HDCLoss(**arguments)


def test_embeddings_of_another_width_are_named(random_batch):
    rows, labels = random_batch(10)
    with pytest.raises(InputError, match="parts of width 2, 3, 5 in all; the embeddings have width 4"):
        HDCLoss([2, 3], [1.0, 0.5])(rows, labels)
    with pytest.raises(InputError, match="width 4 has no 3 equal parts"):
        HDCLoss()(rows, labels)

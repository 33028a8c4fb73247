"""Distance-weighted sampling: the table, and that the streamed draws follow it."""

from __future__ import annotations

import math

import pytest
import torch

from deepmetric.losses import distance_log_weight, distance_weighted_sampling
from deepmetric.losses.streamed import Comparison


def test_weight_is_the_inverse_of_the_density_of_distances():
    """Histogram of distances between random points of the sphere, times the weight: flat."""
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(
        torch.randn(3000, 6, generator=generator, dtype=torch.float64), dim=1
    )
    distance = torch.pdist(points)
    counts = torch.histc(distance, 12, 0.7, 1.9)
    middles = torch.linspace(0.75, 1.85, 12, dtype=torch.float64)
    flat = counts * distance_log_weight(middles, 6, upper_cutoff=None).exp()
    assert ((flat / flat.mean() - 1).abs() < 0.05).all()


def test_cutoffs():
    distance = torch.tensor([0.0, 0.2, 0.5, 1.39, 1.4, 2.0])
    weight = distance_log_weight(distance, 16)
    assert weight[0] == weight[1] == weight[2] > weight[3]
    assert weight[3] > -1e29
    assert (weight[4:] == -1e30).all()
    assert distance_log_weight(distance, 16, upper_cutoff=None).isfinite().all()
    assert distance_log_weight(distance, 2, upper_cutoff=None).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_underflow_in_many_dimensions(dtype):
    """In 512 dimensions the nearest negative of one anchor outweighs those of another by more than any float."""
    rows = torch.nn.functional.normalize(
        torch.randn(8, 512, generator=torch.Generator().manual_seed(0)), dim=1
    )
    rows[1] = rows[0] + 0.02 * rows[1]  # another class, almost the same place
    table = distance_weighted_sampling(rows.to(dtype), torch.arange(8), upper_cutoff=None)
    assert table.isfinite().all()
    torch.testing.assert_close(table.sum(1), torch.ones(8, dtype=dtype))
    weight = distance_log_weight(torch.cdist(rows, rows), 512, upper_cutoff=None)
    others = weight[2:, 2:].fill_diagonal_(-torch.inf)  # among anchors of the other six places
    assert weight[0, 1] - others.max() > math.log(torch.finfo(torch.float32).max)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_references_may_be_of_another_precision(random_batch, dtype):
    rows, labels = random_batch(2, d=8)
    rows, refs = rows.float(), random_batch(3, d=8)[0].to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    wanted = distance_weighted_sampling(rows.to(wide), labels, refs.to(wide), labels + 1)
    assert torch.equal(distance_weighted_sampling(rows, labels, refs, labels + 1), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance_weighted_sampling(rows, labels, refs, labels + 1), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_distances_are_computed_in_float32(dtype):
    distance = torch.tensor([0.25, 1.0, 1.5, 2.0], dtype=dtype)
    assert torch.equal(distance_log_weight(distance, 64), distance_log_weight(distance.float(), 64))


def test_rows_without_an_admissible_negative_are_zero():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.9, 0.1]])
    table = distance_weighted_sampling(rows, torch.tensor([0, 1, 0]))
    assert table.tolist() == [[0.0] * 3] * 3
    table = distance_weighted_sampling(
        rows, torch.tensor([0, 1, 2]), rows, torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    )
    assert table.tolist() == [[0.0] * 3] * 2 + [[1.0, 0.0, 0.0]]


def test_streamed_draws_follow_the_table(random_batch):
    rows, labels = random_batch(1, n=12, d=8)
    table = distance_weighted_sampling(rows, labels)
    pairs = Comparison(rows, labels, rows, labels, torch.arange(12), kind="distance", width=5)
    drawn = pairs.negatives.sample(
        lambda distance: distance_log_weight(distance, 8), 20000, torch.Generator().manual_seed(0)
    )
    for i in range(12):
        if table[i].sum() == 0:
            assert (drawn[i] == -1).all()
            continue
        share = torch.bincount(drawn[i], minlength=12) / 20000
        assert (share - table[i]).abs().max() < 0.02
        assert (share[table[i] == 0] == 0).all()

"""Many classes: memory that stays within a few copies of the proxies, and steps that see a part of the classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepmetric.losses import NormalizedSoftmaxLoss, ProxyNCALoss


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_matrix_of_items_by_classes():
    """256 items x 200,000 classes x 64, forward and backward: proxies and their gradient have 51 MB each, a matrix of
    logits 205 MB, a normalised copy of the proxies another 51 MB."""
    code = """
import torch
from deepmetric.losses import ArcFaceLoss, NormalizedSoftmaxLoss, ProxyAnchorLoss, SoftTripleLoss

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
def step(loss):
    rows = torch.randn(256, 64, requires_grad=True)
    labels = torch.arange(256) * (loss.num_classes // 256)
    loss(rows, labels).backward()
    assert rows.grad.abs().sum() > 0
    assert loss.proxies.grad.abs().sum() > 0

makes = [NormalizedSoftmaxLoss, ProxyAnchorLoss, lambda c, d: ArcFaceLoss(c, d, label_smoothing=0.1),
         lambda c, d: SoftTripleLoss(c // 4, d, 4, tau=0.0)]
for make in makes:  # whatever libraries take once
    step(make(2_000, 64))
before = peak()
for make in makes:
    step(make(200_000, 64))
print(peak() - before)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(shown.stdout) < 51 + 51 + 51 + 20  # proxies, gradient, one to spare for the allocator


def test_drawn_classes_hold_those_of_the_batch_and_are_new_each_step():
    torch.manual_seed(0)
    loss = NormalizedSoftmaxLoss(1000, 4, negative_fraction=0.1)
    labels = torch.tensor([3, 999, 3, 500])
    draws = [loss._drawn(labels) for _ in range(3)]
    for drawn in draws:
        assert drawn is not None
        assert len(drawn) == 100
        assert torch.equal(drawn, drawn.unique())
        assert torch.isin(labels, drawn).all()
    assert not torch.equal(draws[0], draws[1])
    assert int(loss.draws) == 3
    again = NormalizedSoftmaxLoss(1000, 4, negative_fraction=0.1)
    assert torch.equal(again._drawn(labels), draws[0])
    other = NormalizedSoftmaxLoss(1000, 4, negative_fraction=0.1, seed=1)
    assert not torch.equal(other._drawn(labels), draws[0])


def test_classes_of_the_batch_are_never_dropped():
    loss = NormalizedSoftmaxLoss(10, 4, negative_fraction=0.2)
    assert torch.equal(loss._drawn(torch.arange(7)), torch.arange(7))


def test_only_drawn_classes_take_gradients_and_evaluation_sees_all():
    torch.manual_seed(0)
    loss = ProxyNCALoss(50, 4, negative_fraction=0.2)
    every = ProxyNCALoss(50, 4)
    every.proxies.data.copy_(loss.proxies)
    x, labels = torch.randn(6, 4), torch.tensor([0, 7, 7, 49, 20, 3])
    loss(x, labels).backward()
    moved = loss.proxies.grad.abs().sum(1) > 0
    assert int(moved.sum()) == 10
    assert moved[labels].all()
    loss.eval()
    assert loss(x, labels).item() == every(x, labels).item()
    assert int(loss.draws) == 1


def test_every_class_is_drawn_about_equally_often():
    loss = NormalizedSoftmaxLoss(40, 2, negative_fraction=0.25)
    seen = torch.zeros(40)
    for _ in range(600):
        seen[loss._drawn(torch.tensor([0]))] += 1
    assert seen[0] == 600
    rest = seen[1:] / 600  # 9 of the 39 others each time: 0.231, standard deviation 0.017
    assert (rest - 9 / 39).abs().max() < 0.08

"""CrossBatchMemory: what it holds, what it leaves out, and what it gives back after a stop."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.losses import (
    ContrastiveLoss,
    CosFaceLoss,
    CrossBatchMemory,
    MultiSimilarityLoss,
    TripletLoss,
    WeightedSum,
)

LOSSES = [ContrastiveLoss(), TripletLoss(0.5, "all"), MultiSimilarityLoss(epsilon=0.3)]


def batches(sizes, d=3, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for n in sizes:
        rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
        yield rows, torch.randint(classes, (n,), generator=generator)


class Recorder(nn.Module):
    """A loss that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Tensor | None]] = []

    def forward(self, embeddings, labels, ref_emb=None, ref_labels=None, self_index=None):
        self.calls.append(
            {
                "embeddings": embeddings,
                "labels": labels,
                "ref_emb": ref_emb,
                "ref_labels": ref_labels,
                "own": self_index,
            }
        )
        return embeddings.sum()


@given(st.integers(1, 9), st.lists(st.integers(0, 14), max_size=8), st.booleans())
@settings(max_examples=80, deadline=None)
def test_holds_the_last_rows_and_knows_where_each_stands(size, sizes, masked):
    """Against a deque, whatever the sizes: wrap-around, batches larger than the memory, empty batches."""
    recorder = Recorder()
    memory = CrossBatchMemory(recorder, dim=3, size=size, batch_weight=0.0).double()
    last = deque(maxlen=size)
    for rows, labels in batches(sizes):
        mask = torch.arange(len(rows)) % 3 == 0 if masked else None
        stored, stored_labels = (rows, labels) if mask is None else (rows[mask], labels[mask])
        last.extend(zip(stored.tolist(), stored_labels.tolist()))
        recorder.calls.clear()
        memory(rows, labels, enqueue_mask=mask)

        filled, cursor = int(memory.filled), int(memory.cursor)
        assert filled == len(last)
        oldest = cursor if filled == size else 0
        order = [(oldest + k) % size for k in range(filled)]
        assert memory.embeddings[order].tolist() == [row for row, _ in last]
        assert memory.labels[order].tolist() == [label for _, label in last]
        assert (memory.labels[filled:] == -1).all()
        if not filled:
            continue
        (call,) = recorder.calls
        assert call["ref_emb"].shape == (filled, 3)
        if masked:
            assert call["own"] is None
            assert torch.equal(call["embeddings"], rows[~mask])
            continue
        own = call["own"].tolist()
        kept = max(len(rows) - size, 0)
        assert own[:kept] == [-1] * kept
        for row, position in zip(rows[kept:].tolist(), own[kept:]):
            assert memory.embeddings[position].tolist() == row


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_loss_is_the_weighted_sum_of_both_parts(loss):
    """By hand: concatenated past batches as references, own copies named; gradients of the anchors alone."""
    memory = CrossBatchMemory(loss, dim=3, size=20, batch_weight=0.7, memory_weight=0.2).double()
    seen, seen_labels = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    for rows, labels in batches([6, 5, 7]):
        rows.requires_grad_()
        value = memory(rows, labels)
        own = torch.arange(len(seen), len(seen) + len(rows))
        seen, seen_labels = torch.cat([seen, rows.detach()]), torch.cat([seen_labels, labels])
        expected = 0.7 * loss(rows, labels) + 0.2 * loss(rows, labels, seen, seen_labels, own)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, rows), torch.autograd.grad(expected, rows))


def test_duplicates_in_the_memory_stay_positives():
    """An image met twice is a positive of itself at another age; only the copy just stored is left out."""
    memory = CrossBatchMemory(
        ContrastiveLoss("squared_distance", reduction="mean"), dim=2, size=4, batch_weight=0.0
    )
    x, label = torch.tensor([[0.6, 0.8]]), torch.tensor([0])
    memory(torch.tensor([[1.0, 0.0]]), label)
    memory(x, label)
    # Two positives, at squared distance 0.8 and 0.
    assert memory(x, label).item() == pytest.approx(0.4)


def test_warmup_stores_nothing_and_is_the_batch_alone():
    memory = CrossBatchMemory(ContrastiveLoss(), dim=3, size=9, warmup_steps=2, batch_weight=0.0).double()
    for step, (rows, labels) in enumerate(batches([4, 4, 4, 4]), start=1):
        value = memory(rows, labels)
        assert int(memory.step) == step
        assert int(memory.filled) == min(max(step - 2, 0) * 4, 9)
        if step <= 2:
            torch.testing.assert_close(value, ContrastiveLoss()(rows, labels))


def test_evaluation_reads_and_does_not_write():
    memory = CrossBatchMemory(ContrastiveLoss(), dim=3, size=9).double()
    (first, labels), (second, second_labels) = batches([4, 5])
    memory.eval()
    torch.testing.assert_close(
        memory(first, labels), ContrastiveLoss()(first, labels)
    )  # nothing stored: batch alone
    memory.train()
    memory(first, labels)
    memory.eval()
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    value = memory(second, second_labels)
    expected = ContrastiveLoss()(second, second_labels) + ContrastiveLoss()(
        second, second_labels, first, labels
    )
    torch.testing.assert_close(value, expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in memory.state_dict().items())


def test_evaluation_has_the_weights_once_warmup_is_over():
    ((rows, labels),) = batches([5])
    alone = ContrastiveLoss()(rows, labels)
    memory = CrossBatchMemory(ContrastiveLoss(), dim=3, size=9, warmup_steps=1, batch_weight=0.5).double()
    torch.testing.assert_close(memory.eval()(rows, labels), alone)
    memory.train()(rows, labels)
    torch.testing.assert_close(memory.eval()(rows, labels), 0.5 * alone)


def test_state_of_another_size_is_refused_whole():
    saved = CrossBatchMemory(ContrastiveLoss(), dim=3, size=6)
    saved(torch.randn(5, 3), torch.arange(5))
    for size, dim in ((4, 3), (6, 2)):
        memory = CrossBatchMemory(ContrastiveLoss(), dim=dim, size=size)
        with pytest.raises(RuntimeError, match=r"is of \(6, 3\) numbers \(size, dim\)"):
            memory.load_state_dict(saved.state_dict())
        assert int(memory.filled) == int(memory.cursor) == int(memory.step) == 0


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_goes_on_after_a_stop_as_if_unbroken(loss, tmp_path):
    """Save in the middle, load into a fresh memory, go on: the same numbers to the last bit."""
    data = list(batches([5, 4, 6, 5, 4, 7]))
    unbroken = CrossBatchMemory(loss, dim=3, size=11, warmup_steps=1)
    values = [unbroken(rows.float(), labels).item() for rows, labels in data]
    first = CrossBatchMemory(loss, dim=3, size=11, warmup_steps=1)
    for rows, labels in data[:3]:
        first(rows.float(), labels)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = CrossBatchMemory(loss, dim=3, size=11, warmup_steps=1)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second(rows.float(), labels).item() for rows, labels in data[3:]] == values[3:]
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_state_is_tensors_of_fixed_kind():
    memory = CrossBatchMemory(ContrastiveLoss(), dim=3, size=5)
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in memory.state_dict().items()}
    assert kinds == {
        "embeddings": (torch.float32, (5, 3)),
        "labels": (torch.int64, (5,)),
        "cursor": (torch.int64, ()),
        "filled": (torch.int64, ()),
        "step": (torch.int64, ()),
    }
    memory(torch.randn(4, 3), torch.arange(4, dtype=torch.int32))
    assert kinds == {name: (t.dtype, tuple(t.shape)) for name, t in memory.state_dict().items()}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("together", [True, False])
def test_backward_may_wait_for_the_next_forward(loss, together):
    """Two forward passes before the backward pass give the gradients of each with the memory it met."""
    data = list(batches([6, 6, 6, 6]))
    for rows, _ in data:
        rows.requires_grad_()
    at_once = CrossBatchMemory(loss, dim=3, size=10).double()
    wanted = []
    for rows, labels in data:
        wanted += torch.autograd.grad(at_once(rows, labels), rows)
    later = CrossBatchMemory(loss, dim=3, size=10).double()
    values = [later(rows, labels) for rows, labels in data]
    if together:
        torch.stack(values).sum().backward()
    else:
        for value in values:
            value.backward()
    for (rows, _), gradient in zip(data, wanted):
        torch.testing.assert_close(rows.grad, gradient)


def test_reading_and_writing_never_copy_the_memory():
    recorder = Recorder()
    memory = CrossBatchMemory(recorder, dim=3, size=8).double()
    place = memory.embeddings.data_ptr()
    for rows, labels in batches([5, 5, 5]):
        memory(rows.requires_grad_(), labels).backward()
        assert recorder.calls[-1]["ref_emb"].data_ptr() == place
        assert memory.embeddings.data_ptr() == place
    assert not memory.embeddings.requires_grad


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_store(dtype):
    memory = CrossBatchMemory(ContrastiveLoss(), dim=3, size=10, dtype=dtype, batch_weight=0.0)
    (rows, labels), (more, more_labels) = batches([6, 4])
    memory(rows.float(), labels)
    value = memory(more.float(), more_labels)
    assert memory.embeddings.dtype == getattr(torch, dtype)
    assert value.dtype == torch.float32
    stored = torch.cat([rows, more]).to(getattr(torch, dtype)).float()
    expected = ContrastiveLoss()(
        more.float(), more_labels, stored, torch.cat([labels, more_labels]), torch.arange(6, 10)
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_masks_of_all_and_of_none():
    memory = CrossBatchMemory(ContrastiveLoss(), dim=3, size=10).double()
    ((rows, labels),) = batches([6])
    rows.requires_grad_()
    value = memory(rows, labels, enqueue_mask=torch.ones(6, dtype=torch.bool))  # all stored, no anchor
    assert value.item() == 0
    assert torch.autograd.grad(value, rows)[0].abs().sum() == 0
    memory(rows, labels, enqueue_mask=torch.zeros(6, dtype=torch.bool))  # all anchors, none stored
    assert int(memory.filled) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.randn(4, 2), torch.arange(4)), "width 2, the memory holds rows of width 3.*dim=2"),
        (lambda m: m(torch.randn(4, 3), torch.arange(5)), "`labels` must have one entry a row"),
        (lambda m: m(torch.randn(4, 3), torch.rand(4)), "`labels` must be integers"),
        (lambda m: m(torch.randn(4, 3), torch.arange(4), torch.ones(4)), "`enqueue_mask` must be 4 booleans"),
        (lambda m: m(torch.randn(4, 3, device="meta"), torch.arange(4)), r"memory.to\(device\)"),
        (lambda m: CrossBatchMemory(m.loss, dim=0, size=4), "at least 1"),
        (
            lambda m: CrossBatchMemory(m.loss, dim=3, size=4, dtype="float8"),
            "expected float32, float16 or bfloat16",
        ),
        (
            lambda m: CrossBatchMemory(CosFaceLoss(3, 3), dim=3, size=4)(torch.randn(4, 3), torch.arange(4)),
            "CosFaceLoss takes none.*Leave the memory out",
        ),
        (
            lambda m: CrossBatchMemory(
                WeightedSum([m.loss, CosFaceLoss(3, 3)]), dim=3, size=4, warmup_steps=9
            )(torch.randn(4, 3), torch.arange(4)),
            "WeightedSum takes none",
        ),
        (
            lambda m: m(torch.randn(4, 3), torch.arange(4), [True] * 4),
            "`enqueue_mask` must be a tensor; got list",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(CrossBatchMemory(ContrastiveLoss(), dim=3, size=4))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_million_entries_are_read_without_a_copy():
    """64 anchors x 1,000,000 x 128 in half precision, forward and backward: the memory itself has 256 MB, a copy of
    it in float32, a matrix of the pairs or of their labels at least as much again."""
    code = """
import torch
from deepmetric.losses import CrossBatchMemory, ContrastiveLoss, MultiSimilarityLoss, TripletLoss

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

torch.manual_seed(0)
torch.set_num_threads(1)
def memory(loss, size):
    memory = CrossBatchMemory(loss, dim=128, size=size, dtype="bfloat16")
    for rows in memory.embeddings.split(10_000):
        rows.normal_()
    memory.labels.random_(200_000)
    memory.filled.fill_(size)
    return memory

labels = torch.arange(16).repeat_interleave(4)
losses = [MultiSimilarityLoss(), ContrastiveLoss("distance"), TripletLoss(mining="all")]
for loss in losses:  # whatever libraries take once
    rows = torch.randn(64, 128, requires_grad=True)
    memory(loss, 20_000)(rows, labels).backward()
large = memory(losses[0], 1_000_000)
before = peak()
for loss in losses:
    large.loss = loss
    rows = torch.randn(64, 128, requires_grad=True)
    large(rows, labels).backward()
    assert rows.grad.abs().sum() > 0
print(peak() - before)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(shown.stdout) < 64

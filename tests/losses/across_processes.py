"""Run by test_across_processes.py in each of several processes: everything is held to one process with the joined
input, which every process computes beside its own part."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepmetric.errors import InputError
from deepmetric.losses import (
    BinomialDevianceLoss,
    CircleLoss,
    ContrastiveLoss,
    CrossBatchMemory,
    HardMiningLoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NCALoss,
    NPairsLoss,
    TripletLoss,
    across_processes,
    distance_weighted_sampling,
)
from deepmetric.losses.streamed import Comparison, Processes

ROWS, REFS = [5, 0, 7], [6, 15, 4]  # of each process
WITHIN = 1e-9


def every_loss() -> dict[str, nn.Module]:
    """The table of test_every_loss.py, and what its other tests leave out: parameters, choices, orders."""
    path = Path(__file__).with_name("test_every_loss.py")
    spec = importlib.util.spec_from_file_location("every_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    boundaries = [0.9, 1.0, 1.1, 1.2]
    return {
        **module.LOSSES,
        "npairs first": NPairsLoss(l2_weight=0.01),
        "circle batch": CircleLoss(0.25, gamma=8.0, over="batch"),
        "margin learned": MarginLoss(0.3, beta=boundaries, learn_beta=True, nu=0.1, sampling="all"),
        "margin one learned": MarginLoss(0.3, beta=1.1, learn_beta=True, nu=0.1, sampling="all"),
        "nca many": NCALoss(2.0, neighbours=9),
        "triplet semihard push": TripletLoss(0.5, "semihard", singletons="push"),
        "triplet all push": TripletLoss(0.5, "all", singletons="push", reduction="mean"),
        "triplet hard swap push": TripletLoss(0.5, "hard", swap=True, singletons="push"),
        "triplet band swap": TripletLoss(0.5, "semihard_band", swap=True),
        "triplet soft band": TripletLoss(0.5, "semihard_band", soft_margin=True),
        "triplet soft": TripletLoss(0.1, "all", soft_margin=True),
        "triplet mean hard_band": TripletLoss(0.0, "hard_band", reduction="mean"),
        "lifted count": LiftedStructureLoss("generalized", incomplete="count"),
        "contrastive below 0": ContrastiveLoss(negative_margin=-0.2, reduction="nonzero"),
        "multi_similarity steep": MultiSimilarityLoss(beta=300.0, epsilon=0.3),
        "binomial pairs, scaled": BinomialDevianceLoss(scaled=True, reduction="pairs"),
        "hard mining 0": HardMiningLoss(0.0),
    }


def draw(sizes: list[int], seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    return rows, torch.randint(classes, (sum(sizes),), generator=generator)


def part(joined: Tensor, sizes: list[int], rank: int) -> Tensor:
    start = sum(sizes[:rank])
    return joined[start : start + sizes[rank]].detach().clone()


def close(ours: Tensor | None, truth: Tensor | None, *where: object) -> None:
    if truth is None or not truth.numel():
        return
    assert ours is not None, where
    error = (ours - truth).abs().max().item()
    assert error <= WITHIN * max(1.0, truth.abs().max().item()), (*where, error)


def compare(name: str, single: nn.Module, spread: nn.Module, values: tuple, rows: tuple, world: int) -> None:
    """The value and all gradients: rows are (joined leaf, this process's leaf, sizes) each."""
    truth, ours = values
    close(ours, truth, name, "value")
    for module in (single, spread):
        module.zero_grad()
    truth.backward()
    ours.backward()
    for which, (joined, mine, sizes) in enumerate(rows):
        # The mean over processes is the gradient of the model: each process's part is R times its share.
        close(mine.grad / world, part(joined.grad, sizes, dist.get_rank()), name, "gradient", which)
    for (path, wanted), got in zip(single.named_parameters(), spread.parameters()):
        assert wanted.grad is not None
        assert got.grad is not None
        dist.all_reduce(got.grad)
        close(got.grad / world, wanted.grad, name, path)


def in_batch(name: str, loss: nn.Module, rank: int, world: int, sizes: list[int], classes: int = 4) -> None:
    single, spread = copy.deepcopy(loss).double(), across_processes(copy.deepcopy(loss).double())
    x, labels = draw(sizes, seed=1, classes=classes)
    x.requires_grad_()
    mine = part(x, sizes, rank).requires_grad_()
    values = single(x, labels), spread(mine, part(labels, sizes, rank))
    compare(f"{name} in a batch of {sizes}", single, spread, values, ((x, mine, sizes),), world)


def against_references(name: str, loss: nn.Module, rank: int, world: int) -> None:
    single, spread = copy.deepcopy(loss).double(), across_processes(copy.deepcopy(loss).double())
    sizes, ref_sizes = ROWS[:world], REFS[:world]
    (x, labels), (refs, ref_labels) = draw(sizes, seed=2), draw(ref_sizes, seed=3)
    # Own copies at home, with another process, under another label, and none.
    own = torch.full((len(x),), -1)
    own[:4] = torch.tensor([2, len(refs) - 1, 7, 8])
    refs[own[:4]], ref_labels[own[:3]] = x[:4], labels[:3]
    x.requires_grad_()
    refs.requires_grad_()
    mine, my_refs = part(x, sizes, rank).requires_grad_(), part(refs, ref_sizes, rank).requires_grad_()
    values = (
        single(x, labels, refs, ref_labels, own),
        spread(
            mine,
            part(labels, sizes, rank),
            ref_emb=my_refs,
            ref_labels=part(ref_labels, ref_sizes, rank),
            self_index=part(own, sizes, rank),
        ),
    )
    rows = ((x, mine, sizes), (refs, my_refs, ref_sizes))
    compare(f"{name} against references", single, spread, values, rows, world)


STEPS = [
    [3, 4, 2],
    [2, 0, 5],
    [4, 4, 4],
    [0, 3, 1],
    [9, 8, 7],
    [1, 2, 3],
]  # rows of each process at each step


def memory_of(loss: nn.Module, dtype: str = "float32", size: int = 13, **settings: float) -> CrossBatchMemory:
    memory = CrossBatchMemory(copy.deepcopy(loss), dim=4, size=size, warmup_steps=1, dtype=dtype, **settings)  # type: ignore[arg-type]
    return memory.double() if dtype == "float32" else memory


def step(
    name: str,
    number: int,
    single: CrossBatchMemory,
    spread: CrossBatchMemory,
    rank: int,
    world: int,
    masked: bool = False,
) -> None:
    sizes = STEPS[number][:world]
    x, labels = draw(sizes, seed=10 + number)
    mask = (torch.arange(len(x)) % 3 == 1) if masked else None
    x.requires_grad_()
    mine, my_labels = part(x, sizes, rank).requires_grad_(), part(labels, sizes, rank)
    my_mask = part(mask, sizes, rank) if mask is not None else None
    values = single(x, labels, enqueue_mask=mask), spread(mine, my_labels, enqueue_mask=my_mask)
    compare(f"{name} with a memory, step {number}", single, spread, values, ((x, mine, sizes),), world)
    assert torch.equal(single.labels[spread._share], spread.labels), (name, number)
    assert torch.equal(single.embeddings[spread._share], spread.embeddings), (name, number)


def with_memory(
    name: str, loss: nn.Module, rank: int, world: int, steps: int = 6, masked: bool = False, **settings
) -> None:
    single = memory_of(loss, **settings)
    spread = across_processes(memory_of(loss, **settings))
    assert len(spread.embeddings) in (spread.size // world, spread.size // world + 1)
    for number in range(steps):
        step(name, number, single, spread, rank, world, masked)
        if number == 3:  # reads alone
            for module in (single, spread):
                module.eval()
            step(name, number, single, spread, rank, world)
            for module in (single, spread):
                module.train()


def saved_and_loaded(rank: int, world: int, folder: Path) -> None:
    """What an earlier number of processes saved, and one process: either loads and goes on."""
    loss = MarginLoss(0.3, beta=1.1, learn_beta=True, sampling="all")
    single = memory_of(loss)
    for number in range(3):
        single(*draw(STEPS[number], seed=10 + number))
    for earlier in [*sorted(folder.glob("*.pt")), None]:
        state = single.state_dict() if earlier is None else torch.load(earlier, weights_only=True)
        if earlier is not None:
            for key, tensor in single.state_dict().items():
                assert torch.equal(tensor, state[key]), (earlier, key)
        spread = across_processes(memory_of(loss))
        spread.load_state_dict(state)
        again = copy.deepcopy(single)
        for number in range(3, 6):
            step(f"loaded from {earlier}", number, again, spread, rank, world)
    # Loaded first, spread afterwards.
    late = memory_of(loss)
    late.load_state_dict(single.state_dict())
    step("spread after loading", 3, copy.deepcopy(single), across_processes(late), rank, world)

    # The same three steps over these processes, saved for the next number of them.
    spread = across_processes(memory_of(loss))
    for number in range(3):
        sizes = [sum(STEPS[number][2 * rank : 2 * rank + 2]) if world == 2 else STEPS[number][rank]]
        start = [0, sum(STEPS[number][:2])][rank] if world == 2 else sum(STEPS[number][:rank])
        x, labels = draw(STEPS[number], seed=10 + number)
        spread(x[start : start + sizes[0]], labels[start : start + sizes[0]])
    state = spread.state_dict()  # by all of them
    dist.barrier()
    if rank == 0:
        torch.save(state, folder / f"{world}.pt")


def chosen(rank: int, world: int) -> None:
    """The k nearest and random references: of all processes, each with the one process that has it."""
    sizes = REFS[:world]
    (x, labels), (refs, ref_labels) = draw([4], seed=20), draw(sizes, seed=21)
    start, processes = sum(sizes[:rank]), Processes()
    whole = Comparison(x, labels, refs, ref_labels, None, width=64)
    mine = part(refs, sizes, rank)
    ours = Comparison(x, labels, mine, part(ref_labels, sizes, rank), None, processes)
    for k in (1, 3, 40):
        near = ours.negatives.topk(k)
        found = torch.where(near >= 0, near + start, -1)
        assert torch.equal(processes.max_(found), whole.negatives.topk(k)), k
        close(ours.chosen(near)[0], whole.chosen(whole.negatives.topk(k))[0], "nearest", k)

    def log_weight(v: Tensor) -> Tensor:
        return -3 * v

    draws = 5_000
    near = ours.negatives.sample(log_weight, draws, torch.Generator().manual_seed(rank))
    assert torch.equal(processes.sum_((near >= 0).long()), torch.ones_like(near))
    found = processes.max_(torch.where(near >= 0, near + start, -1))
    values, _, negative = whole.matrix
    expected = torch.where(negative, -3 * values, -torch.inf).softmax(1)
    frequency = torch.stack([torch.bincount(row, minlength=len(refs)) for row in found]) / draws
    assert (frequency - expected).abs().max() < 5 * (0.25 / draws) ** 0.5


def drawn(rank: int, world: int) -> None:
    """The margin loss's random negatives: in a batch those of one process; in a memory, spread as they should be."""
    loss = MarginLoss(0.3, beta=1.2, upper_cutoff=2.1, seed=5)
    in_batch("margin distance", loss, rank, world, ROWS[:world])
    # A single negative each can be drawn: no chance is left.
    sizes, ref_sizes = ROWS[:world], REFS[:world]
    (x, labels), (refs, _) = draw(sizes, seed=30), draw(ref_sizes, seed=31)
    ref_labels = torch.full((len(refs),), 9)
    reach = distance_weighted_sampling(x, labels, refs, ref_labels, upper_cutoff=None)
    unit = nn.functional.normalize
    distance = torch.cdist(unit(x), unit(refs)).sort(dim=1).values
    assert (reach > 0).all()
    cut = float((distance[0, 0] + distance[0, 1]) / 2)
    x, labels = x[:1], labels[:1]
    positive = torch.cat([refs, unit(x + 0.3)]), torch.cat([ref_labels, labels])
    single = MarginLoss(0.3, beta=1.2, upper_cutoff=cut)
    spread = across_processes(MarginLoss(0.3, beta=1.2, upper_cutoff=cut))
    x.requires_grad_()
    here, mine_refs = [1, *[0] * (world - 1)], [*ref_sizes[:-1], ref_sizes[-1] + 1]
    mine = part(x, here, rank).requires_grad_()
    for _ in range(2):
        x.grad = mine.grad = None
        values = (
            single(x, labels, *positive),
            spread(mine, part(labels, here, rank), *(part(p, mine_refs, rank) for p in positive)),
        )
        assert values[0] > 0
        compare("margin, one negative", single, spread, values, ((x, mine, here),), world)
    # However it falls, all processes have the same number.
    spread = across_processes(memory_of(loss))
    for number in range(3):
        sizes = STEPS[number][:world]
        x, labels = draw(sizes, seed=number)
        value = spread(part(x, sizes, rank), part(labels, sizes, rank))
        every = [torch.zeros_like(value) for _ in range(world)]
        dist.all_gather(every, value)
        assert all(torch.equal(value, other) for other in every)


def wrapped(rank: int, world: int) -> None:
    """In DistributedDataParallel, which would give all processes the first one's share of the memory."""
    loss = MarginLoss(0.3, beta=1.1, learn_beta=True, sampling="all")
    single = memory_of(loss)
    spread = DistributedDataParallel(across_processes(memory_of(loss)))
    for number in range(4):
        sizes = STEPS[number][:world]
        x, labels = draw(sizes, seed=40 + number)
        value = spread(part(x, sizes, rank), part(labels, sizes, rank))
        close(value, single(x, labels), "wrapped", number)
        value.backward()


def refused() -> None:
    for module in (nn.Linear(2, 2), CrossBatchMemory(nn.Linear(2, 2), 2, 5)):
        with pytest.raises(InputError, match="PairLoss"):
            across_processes(module)


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    for name, loss in every_loss().items():
        against_references(name, loss, rank, world)
        if world > 2:  # a batch within itself, and a memory: how many they are is not asked there
            continue
        # In the first step the memory is not in use: the batch alone.
        with_memory(name, loss, rank, world, steps=3, size=9, batch_weight=0.7, memory_weight=0.3)
    for sizes in ([0, 0, 0], [1, 0, 0], [0, 6, 0]):
        for name in ("multi_similarity", "triplet hard", "npairs first", "margin learned", "angular"):
            in_batch(name, every_loss()[name], rank, world, sizes[:world], classes=1)
    for settings in ({"size": 5}, {"size": 2}, {"size": 200}, {"dtype": "bfloat16"}, {"batch_weight": 0.0}):
        with_memory(str(settings), MultiSimilarityLoss(epsilon=0.3), rank, world, **settings)
    with_memory("masked", ContrastiveLoss("distance"), rank, world, masked=True)
    chosen(rank, world)
    drawn(rank, world)
    wrapped(rank, world)
    saved_and_loaded(rank, world, Path(folder))
    refused()
    dist.destroy_process_group()


if __name__ == "__main__":
    import socket

    for world in (2, 3):  # the three begin with what the two have saved
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Forked, so that torch is imported once.
        mp.start_processes(worker, (world, port, sys.argv[1]), nprocs=world, start_method="fork")

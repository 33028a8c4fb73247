"""Losses on several processes equal the loss of one process on the joined batch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
import importlib.util, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from deepmetric.losses.streamed import Comparison, Processes

spec = importlib.util.spec_from_file_location("forms", sys.argv[1])
forms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forms)
NAMES = ["contrastive cosine", "contrastive linear", "triplet hard", "triplet all", "triplet semi-hard",
         "triplet band soft", "intra-pair variance", "lifted general", "lifted Deep_Metric",
         "binomial", "margin", "NCA", "multi-similarity", "multi-similarity, steep", "NT-Xent", "SupCon", "angular",
         "circle", "tuplet margin", "general pair weighting"]
N = [5, 4, 7]  # anchors of each process: unequal on purpose
M = [11, 3, 20]

def problem(world):
    g = torch.Generator().manual_seed(0)
    draw = lambda rows: torch.randn(rows, 6, generator=g, dtype=torch.float64)
    labels = lambda rows: torch.randint(4, (rows,), generator=g)
    n, m = sum(N[:world]), sum(M[:world])
    return draw(n), labels(n), draw(m), labels(m)

def part(rows, sizes, rank):
    start = sum(sizes[:rank])
    return rows[start : start + sizes[rank]]

def loss_of(name, x, labels, refs, ref_labels, own, beta, **how):
    kind, normalize, form = forms.FORMS[name]
    c = Comparison(x, labels, refs, ref_labels, own, kind=kind, normalize=normalize, **how)
    return form(c, beta[c.labels]) if name == "margin" else form(c)

def worker(rank, world, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    x, labels, refs, ref_labels = problem(world)
    for name in NAMES:
        for in_batch in (False, True):
            for listed in (0, 1000):
                for width in (2, 64) if listed else (3,):
                    leaf, beta = x.clone().requires_grad_(), torch.linspace(0.9, 1.2, 4).double().requires_grad_()
                    r = leaf if in_batch else refs
                    rl, own = (labels, torch.arange(len(x))) if in_batch else (ref_labels, None)
                    truth = loss_of(name, leaf, labels, r, rl, own, beta)
                    truth.backward()
                    mine, mine_beta = part(x, N, rank).clone().requires_grad_(), beta.detach().clone().requires_grad_()
                    my_labels = part(labels, N, rank)
                    processes = Processes()
                    every = processes.gather(mine)
                    if in_batch:
                        r, rl, own = mine, my_labels, torch.arange(len(x)) - sum(N[:rank])
                        own = torch.where((own >= 0) & (own < len(mine)), own, -1)
                    else:
                        r, rl, own = part(refs, M, rank), part(ref_labels, M, rank), None
                    value = loss_of(name, every, labels, r, rl, own, mine_beta, listed=listed, width=width,
                                    processes=processes)
                    value.backward()
                    where = (name, in_batch, listed, width)
                    assert abs(value - truth) < 1e-9, (*where, value, truth)
                    # The mean over processes is the gradient, as DistributedDataParallel takes it.
                    error = (mine.grad / world - part(leaf.grad, N, rank)).abs().max()
                    assert error < 1e-9, (*where, error)
                    if name == "margin":
                        dist.all_reduce(mine_beta.grad)
                        assert (mine_beta.grad / world - beta.grad).abs().max() < 1e-9, where
    dist.destroy_process_group()

if __name__ == "__main__":
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = int(sys.argv[2])
    mp.start_processes(worker, (world, port), nprocs=world, start_method="fork")  # imports torch once
"""


@pytest.mark.parametrize("world", [2, 3])
def test_equals_a_single_process(world: int, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    forms = Path(__file__).with_name("forms.py")
    out = subprocess.run(
        [sys.executable, str(script), str(forms), str(world)], capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr[-3000:]

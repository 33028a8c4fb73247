"""Losses with class weights over several processes equal the loss of one process on the joined batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import importlib.util, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from deepmetric.losses.streamed import Processes

spec = importlib.util.spec_from_file_location("conftest_of_proxies", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
N = [5, 0, 7]  # items of each process: unequal on purpose, one has none
C, D = 8, 4

def problem(world):
    g = torch.Generator().manual_seed(0)
    n = sum(N[:world])
    return torch.randn(n, D, generator=g, dtype=torch.float64), torch.randint(C, (n,), generator=g)

def build(form, **more):
    torch.manual_seed(1)
    loss = form.make(C, D, **more).double()
    with torch.no_grad():
        loss.proxies.normal_()
    return loss

def over(loss):
    loss.processes = Processes()
    return loss

def near(a, b, where):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text: f"{where}: {text}")

def check(name, form, rank, world, sharded, fraction):
    where = (name, sharded, fraction)
    x, labels = problem(world)
    mine = slice(sum(N[:rank]), sum(N[:rank + 1]))
    loss = over(build(form, sharded=sharded, negative_fraction=fraction))
    part = x[mine].clone().requires_grad_()
    value = loss(part, labels[mine])
    value.backward()

    # One process on the joined batch, with the classes that were drawn.
    x.requires_grad_()
    whole = build(form)
    classes = torch.arange(C)
    if fraction < 1:
        loss.draws -= 1
        if sharded:
            start = loss.share.start
            drawn = loss._drawn(loss.share.local(labels)) + start
            classes = loss.processes.gather(drawn)
            assert len(classes) < C
        else:
            classes = loss._drawn(labels[mine])
        assert torch.isin(labels, classes).all()
    rows = whole.proxies.detach().view(C, -1, D).requires_grad_()
    truth = build(form)
    if truth.__class__.__name__ == "SoftTripleLoss" and fraction < 1:
        return  # its penalty is over all classes, whatever is drawn
    truth.num_classes = len(classes)
    place = torch.full((C,), -1).scatter(0, classes, torch.arange(len(classes)))
    wanted = torch.func.functional_call(truth, {"proxies": rows[classes].reshape(-1, D)}, (x, place[labels]))
    wanted.backward()
    near(value, wanted, where)
    near(part.grad / world, x.grad[mine], where)  # the mean over processes, as DistributedDataParallel takes it
    gradient, of_all = loss.proxies.grad, rows.grad.reshape(-1, D)
    if sharded:
        near(gradient, of_all[loss.rows], where)
    else:
        dist.all_reduce(gradient)
        near(gradient / world, of_all, where)

def state_moves_between_numbers_of_processes(form, rank, world):
    alone, shared = build(form), over(build(form, sharded=True))
    state = shared.state_dict()
    assert torch.equal(state["proxies"], alone.proxies)  # whole, on every process
    moved = over(form.make(C, D, sharded=True).double())
    moved.load_state_dict(state)
    assert torch.equal(moved.proxies, shared.proxies)
    alone.load_state_dict(state)
    for classes in (C + 4, len(shared.proxies) // shared.centers):  # rows of either would fit the share
        try:
            over(build(form, sharded=True)).load_state_dict(form.make(classes, D).state_dict())
        except ValueError as error:
            assert f"has {len(alone.proxies)}. Build it with" in str(error)
        else:
            raise AssertionError("loaded")
    pairs = dist.new_group([0, 1])
    if rank < 2:  # saved on `world` processes, loaded on 2
        fewer = form.make(C, D, sharded=True).double()
        fewer.processes = Processes(pairs)
        fewer.load_state_dict(state)
        half = len(alone.proxies) // 2
        assert torch.equal(fewer.proxies, alone.proxies[rank * half : (rank + 1) * half])

def worker(rank, world, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for name, form in conftest.FORMS.items():
        for sharded in (False, True):
            for fraction in (1.0, 0.4) if world == 2 else (1.0,):
                check(name, form, rank, world, sharded, fraction)
        state_moves_between_numbers_of_processes(form, rank, world)
    late = over(conftest.FORMS["arcface"].make(None, None, sharded=True))
    late.set_classes(C, D)  # told after it knows its processes
    assert len(late.proxies) == late.share.stop - late.share.start
    try:
        over(conftest.FORMS["arcface"].make(1, D, sharded=True))
    except ValueError as error:
        assert "1 classes cannot be shared out" in str(error)
    else:
        raise AssertionError("accepted")
    dist.destroy_process_group()

if __name__ == "__main__":
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = int(sys.argv[2])
    mp.spawn(worker, (world, port), nprocs=world)
"""


@pytest.mark.parametrize("world", [2, 3])
def test_equals_a_single_process(world: int, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    forms = Path(__file__).with_name("conftest.py")
    out = subprocess.run(
        [sys.executable, str(script), str(forms), str(world)], capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr[-3000:]

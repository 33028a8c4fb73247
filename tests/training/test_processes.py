"""`deepmetric train` under torchrun: the run of one process, also when a process is killed and others resume it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepmetric.training import Run, Trainer
from deepmetric.training.parse import parse_recipe

# Without batch statistics, which are those of each process, and with a memory that whole batches fill.
SETTINGS = {
    "model.init_args.freeze_batchnorm": "true",
    "loss.class_path": "deepmetric.losses.MarginLoss",
    "loss.init_args.sampling": "all",
    "loss.init_args.learn_beta": "true",
    "loss.init_args.per_class": "true",
    "learning_rates.loss": "0.01",
    "sampler.init_args.classes_per_batch": "6",
    "memory.init_args.size": "54",
    "training.steps": "16",
    "training.evaluate_every": "8",
    "training.checkpoint_every": "4",
}
ARGUMENTS = [word for key, value in SETTINGS.items() for word in (f"--{key}", value)]


def torchrun(processes: int, *command: str) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_a_worker_at(process: subprocess.Popen, run: Run, step: int) -> None:
    """Kill -9 the last process that torchrun has started, as soon as metrics.jsonl shows the step."""
    deadline, needle = time.monotonic() + 240, f'"step": {step},'
    while not (run.metrics_file.exists() and needle in run.metrics_file.read_text(encoding="utf8")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    os.kill(max(map(int, children)), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0, errors


TOGETHER = """
import os, sys
import torch, torch.distributed as dist
from deepmetric.training.guards import NonFiniteLossError
from deepmetric.training.processes import Team, under_torchrun

with under_torchrun():
    team, cpu = Team(), torch.device("cpu")
    rows, loss = torch.ones(3, 2), torch.tensor(1.0)
    ids = [f"item {team.rank}{i}" for i in range(3)]
    team.check_finite(loss, rows, 4, ids)
    if team.rank == 1:  # one process alone meets it, all stop
        rows[2], loss = float("nan"), loss * float("inf")
    try:
        team.check_finite(loss, rows, 5, ids)
    except NonFiniteLossError as error:
        assert "step 5" in str(error) and "1 of 6 embeddings" in str(error) and "item 12" in str(error), error
    else:
        raise AssertionError(team.rank)

    torch.manual_seed(team.rank)
    state, drawn = team.random_state(cpu), torch.rand(3)
    torch.manual_seed(9)
    team.set_random_state(state, cpu)
    assert torch.equal(torch.rand(3), drawn)
    assert team.from_first(team.rank) == 0 and team.from_all(team.rank) == [0, 1]
"""


def test_what_one_meets_all_are_told(tmp_path: Path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    process = torchrun(2, str(script))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found through /proc")
def test_is_the_run_of_one_process_and_survives_a_kill(recipe_file: Path, tmp_path: Path):
    alone, team = Run(tmp_path / "alone"), Run(tmp_path / "team")
    alone.folder.mkdir()
    Trainer(parse_recipe(["--config", str(recipe_file), *ARGUMENTS])[0], alone).train()
    command = ["-m", "deepmetric.cli", "--", "train", str(recipe_file), "--run", str(team.folder), *ARGUMENTS]
    kill_a_worker_at(torchrun(2, *command), team, 6)
    state = torch.load(team.last_checkpoint, weights_only=True)
    assert 0 < state["progress"]["step"] < 16
    assert len(state["random"]["processes"]) == 2
    Trainer(team.recipe, team).train(resume=True)  # by one process

    for one, many in zip(alone.metrics(), team.metrics(), strict=True):
        assert one.keys() == many.keys()
        for key, value in one.items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-4)
            assert many[key] == expected, (one, many)
    a, b = (torch.load(run.last_checkpoint, weights_only=True) for run in (alone, team))
    assert a["loss"].keys() == b["loss"].keys()
    assert int(a["loss"]["filled"]) == 54
    for key in ("labels", "embeddings"):  # within a batch, rows come in the order of processes
        rows = [state["loss"][key].view(54, -1).double() for state in (a, b)]
        torch.testing.assert_close(rows[0].sum(0), rows[1].sum(0), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(a["loss"]["loss.beta"], b["loss"]["loss.beta"], rtol=1e-4, atol=1e-4)
    assert (a["loss"]["loss.beta"] - 1.2).abs().max() > 1e-3
    for key, tensor in a["model"].items():
        torch.testing.assert_close(tensor, b["model"][key], rtol=1e-2, atol=1e-3)

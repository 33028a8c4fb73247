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


# What each process has a part of, or finds for itself: of two processes, broken off and resumed, and of one.
FROZEN = ["--model.init_args.freeze_batchnorm", "true", "--memory=null"]
STEPS = ["--training.steps", "8", "--training.evaluate_every", "4", "--training.log_every", "4"]
SYSTEMS = {
    # An Adam whose steps grow with the gradient, and the gradient's norm is that of all classes.
    "sharded": """
loss: {class_path: deepmetric.losses.SoftTripleLoss, init_args: {sharded: true, centers_per_class: 2}}
optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.02, eps: 0.1}}
training: {clip_norm: 0.05}
learning_rates: {loss: 0.2}
sampler: {class_path: deepmetric.data.MPerClassSampler, init_args: {classes_per_batch: 6, instances: 3}}
""",
    "htl": """
loss: {class_path: deepmetric.losses.HierarchicalTripletLoss}
sampler:
  class_path: deepmetric.data.AnchorNeighbourSampler
  init_args: {anchors: 2, classes_per_anchor: 3, instances: 3}
procedure: {class_path: deepmetric.training.HTL, init_args: {levels: 8, refresh_every: 3}}
""",
    "smart": """
loss: {class_path: deepmetric.losses.TripletGlobalLoss, init_args: {margin: 0.0}}
sampler: {class_path: deepmetric.data.TripletSampler, init_args: {triplets: 6}}
procedure:
  class_path: deepmetric.training.SmartMining
  init_args: {neighbours: 40, window: 3, far_positives: 2, refresh_every: 2, index_every: 8, smoothing: 0.5}
""",
    "bier": """
model: {class_path: deepmetric.models.BIERModel, init_args: {groups: [4, 12]}}
loss: {class_path: deepmetric.losses.BIERLoss, init_args: {groups: [4, 12], diversity: activation}}
sampler: {class_path: deepmetric.data.MPerClassSampler, init_args: {classes_per_batch: 6, instances: 3}}
procedure: {class_path: deepmetric.training.BIER, init_args: {initial_steps: 5}}
""",
}

TOGETHER = """
import shutil, sys
from pathlib import Path
import torch
from deepmetric.training import Procedure, Run, Trainer
from deepmetric.training.guards import NonFiniteLossError
from deepmetric.training.parse import parse_recipe
from deepmetric.training.processes import Team, under_torchrun

def train(folder, arguments, name):
    def stop(_):
        if trainer.step == 4:
            raise InterruptedError

    run = Run(folder / "team" / name)
    run.folder.mkdir(parents=True, exist_ok=True)
    config = ["--config", str(folder / f"{name}.yaml")]
    trainer = Trainer(parse_recipe([*arguments[:2], *config, *arguments[2:]])[0], run)
    trainer.on_evaluation = stop
    try:
        trainer.train()
    except InterruptedError:
        pass
    if name == "sharded":  # of 18 classes, two centres each
        assert trainer.loss.proxies.shape == (18, 16)
        assert trainer.optimizer.state[trainer.loss.proxies]["exp_avg"].shape == (18, 16)
    if trainer.team.first:
        shutil.copytree(run.folder, folder / "half" / name)
    trainer.team.from_first(None)  # by then the checkpoint is written
    Trainer(trainer.recipe, run).train(resume=True)

class Found(Procedure):
    def refresh(self):
        self.found = (Team().rank, float(model.running_mean.sum()))
    def state_dict(self):
        return {"found": self.found}
    def load_state_dict(self, state):
        self.found = state["found"]

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

    model, procedure = torch.nn.BatchNorm1d(4), Found()
    model.running_mean.fill_(5 + team.rank)
    team.refresh(procedure, model)
    assert procedure.found == (0, 20.0) and float(model.running_mean[0]) == 5, procedure.found

    folder, *arguments = sys.argv[1:]
    for name in SYSTEMS:
        train(Path(folder), arguments, name)
"""


def same(one, many, where: str = "") -> None:
    """Nested states that are equal but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == many.keys(), where
        for key, value in one.items():
            same(value, many[key], f"{where}.{key}")
    elif isinstance(one, list):
        for k, (a, b) in enumerate(zip(one, many, strict=True)):
            same(a, b, f"{where}.{k}")
    elif isinstance(one, torch.Tensor) and not one.is_floating_point():
        assert one.shape == many.shape, where
        assert (one != many).double().mean() < 0.01, where  # neighbours that are as near but for rounding
    elif isinstance(one, torch.Tensor):
        scale = float(one.abs().max()) if one.numel() else 0.0
        torch.testing.assert_close(
            many, one, rtol=1e-3, atol=1e-3 * scale, msg=lambda text: f"{where}: {text}"
        )
    else:
        assert many == (pytest.approx(one, rel=1e-3, abs=1e-4) if isinstance(one, float) else one), where


def test_two_processes_do_what_one_does(recipe_file: Path, tmp_path: Path):
    script = tmp_path / "together.py"
    script.write_text(f"SYSTEMS = {list(SYSTEMS)}\n{TOGETHER}")
    for name, system in SYSTEMS.items():
        (tmp_path / f"{name}.yaml").write_text(system)
    arguments = ["--config", str(recipe_file), *FROZEN, *STEPS]
    process = torchrun(2, str(script), str(tmp_path), *arguments)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    for name in SYSTEMS:
        alone = Run(tmp_path / "alone" / name)
        alone.folder.mkdir(parents=True)
        recipe = parse_recipe([*arguments[:2], "--config", str(tmp_path / f"{name}.yaml"), *arguments[2:]])[0]
        Trainer(recipe, alone).train()
        resumed = [Run(tmp_path / "team" / name)]
        if name == "sharded":  # by one process what two began
            resumed.append(Run(tmp_path / "half" / name))
            Trainer(recipe, resumed[1]).train(resume=True)
        for run in resumed:
            same(alone.metrics(), run.metrics(), name)
            a, b = (torch.load(one.last_checkpoint, weights_only=True) for one in (alone, run))
            for part in ("model", "loss", "optimizer", "procedure"):
                same(a[part], b[part], f"{name}.{part}")


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

"""A training process that is really killed, several times, and resumed: the same result as the unbroken run."""

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

STEPS = 150


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "deepmetric.cli", "train", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def kill_at(process: subprocess.Popen, run: Run, step: int) -> None:
    """Kill -9 as soon as metrics.jsonl shows the step."""
    kill_when(process, run.metrics_file, f'"step": {step},')


def kill_when(process: subprocess.Popen, file: Path, needle: str) -> None:
    """Kill -9 as soon as the file is there and has the needle in it."""
    deadline = time.monotonic() + 240
    while not (file.exists() and needle in file.read_text(encoding="utf8")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_and_resumed_equals_unbroken(recipe_file: Path, tmp_path: Path):
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    settings = [
        "--training.steps",
        str(STEPS),
        "--training.evaluate_every",
        "50",
        "--training.checkpoint_every",
        "7",
    ]
    finish(start(str(recipe_file), "--run", str(whole.folder), *settings))

    # two workers read ahead: what they had fetched when killed must not be lost
    process = start(str(recipe_file), "--run", str(broken.folder), *settings, "--training.workers", "2")
    kill_at(process, broken, 17)
    state = torch.load(broken.last_checkpoint, weights_only=True)
    assert 0 < state["progress"]["step"] < STEPS
    process = start("--resume", str(broken.folder))
    kill_at(process, broken, 68)
    finish(start("--resume", str(broken.folder)))

    assert whole.metrics() == broken.metrics()
    a, b = (torch.load(run.last_checkpoint, weights_only=True) for run in (whole, broken))
    for part in ("model", "loss"):
        assert a[part].keys() == b[part].keys()
        for key in a[part]:
            assert torch.equal(a[part][key], b[part][key]), f"{part}.{key}"
    assert a["sampler"] == b["sampler"]
    assert (whole.model_folder / "model.safetensors").read_bytes() == (
        broken.model_folder / "model.safetensors"
    ).read_bytes()
    # the memory was in use and had wrapped round
    assert int(a["loss"]["filled"]) == 50


PROCEDURES = {
    "htl": """
loss: {class_path: deepmetric.losses.HierarchicalTripletLoss}
sampler:
  class_path: deepmetric.data.AnchorNeighbourSampler
  init_args: {anchors: 2, classes_per_anchor: 3, instances: 3}
procedure: {class_path: deepmetric.training.HTL, init_args: {refresh_every: 7}}
""",
    "smart mining": """
loss: {class_path: deepmetric.losses.TripletGlobalLoss}
sampler: {class_path: deepmetric.data.TripletSampler, init_args: {triplets: 6}}
procedure:
  class_path: deepmetric.training.SmartMining
  init_args: {neighbours: 40, refresh_every: 7, index_every: 14, far_positives: 3}
""",
}


def test_killed_before_its_first_checkpoint_begins_again(recipe_file: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    arguments = ["--training.steps", "6", "--training.evaluate_every", "6"]
    process = start(str(recipe_file), "--run", str(run.folder), *arguments)
    kill_when(process, run.recipe_file, "")
    assert not run.last_checkpoint.exists()
    run.metrics_file.write_text(
        '{"step": 0, "split": "val", "map@r": 1.0}\n{"step": 1, "lo'
    )  # or a moment later
    finish(start("--resume", str(run.folder)))
    assert [line["step"] for line in run.metrics() if line.get("split") == "val"] == [0, 6]


@pytest.mark.parametrize("system", PROCEDURES)
def test_a_procedure_s_state_survives_a_kill(recipe_file: Path, tmp_path: Path, system: str):
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    procedure = tmp_path / "procedure.yaml"
    procedure.write_text(PROCEDURES[system])
    arguments = [str(recipe_file), str(procedure), "--memory=null", "--training.steps", "60"]
    arguments += ["--training.evaluate_every", "60", "--training.checkpoint_every", "3"]
    process = start(*arguments, "--run", str(broken.folder))
    kill_at(process, broken, 26)
    # the middle of a stretch, with a tree or candidates that no refresh will make again
    assert torch.load(broken.last_checkpoint, weights_only=True)["progress"]["step"] % 7

    # The rest in this process, with one thread as in that one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        configs = ["--config", arguments[0], "--config", *arguments[1:]]
        whole.folder.mkdir()
        Trainer(parse_recipe(configs)[0], whole).train()
        Trainer(broken.recipe, broken).train(resume=True)
    finally:
        torch.set_num_threads(threads)

    assert whole.metrics() == broken.metrics()
    a, b = (torch.load(run.last_checkpoint, weights_only=True) for run in (whole, broken))
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert a["procedure"]
    torch.testing.assert_close(a["procedure"], b["procedure"], rtol=0, atol=0)

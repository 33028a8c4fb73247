from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
data:
  class_path: deepmetric.data.FolderDataset
  init_args:
    root: {root}
    split: {{test: 10, val: 4, order: name}}
model:
  class_path: deepmetric.models.EmbeddingModel
  init_args:
    backbone: deepmetric.models.ConvNet
    backbone_args: {{blocks: 2, width: 8}}
    embedding_dim: 8
    size: 16
sampler:
  class_path: deepmetric.data.MPerClassSampler
  init_args: {{classes_per_batch: 4, instances: 3}}
optimizer:
  class_path: torch.optim.Adam
  init_args: {{lr: 0.003}}
schedule: deepmetric.training.Schedule
training: {{steps: 12, evaluate_every: 6, checkpoint_every: 3, log_every: 5, device: cpu}}
"""

PLAN = """
description: Gratings.
folds: 2
seeds: [0, 1]
data:
  - {{name: gratings, recipe: {folder}/data.yaml}}
settings: {{training.log_every: 10}}
systems:
  - triplet_semihard
  - name: ms
    recipe: multi_similarity
    set: {{loss.epsilon: null, optimizer.lr: 0.01}}
    search:
      loss.alpha: {{low: 0.5, high: 10, log: true}}
      optimizer.lr: {{choices: [0.001, 0.01]}}
tune: {{trials: 3, pruner: none}}
"""


@pytest.fixture
def plan_file(tmp_path: Path, image_folder: Path) -> Path:
    """A benchmark of two systems, two folds and two seeds whose cells take a second: 8 cells."""
    (tmp_path / "data.yaml").write_text(RECIPE.format(root=image_folder))
    path = tmp_path / "bench.yaml"
    path.write_text(PLAN.format(folder=tmp_path))
    return path


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "deepmetric.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(true: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model as `deepmetric train` exports it."""
    import torch

    from deepmetric.models import EmbeddingModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "model"
    EmbeddingModel(backbone_args={"blocks": 2, "width": 8}, size=16, embedding_dim=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the gratings, its classes dealt by name."""
    from deepmetric.cli import main

    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"""
        data:
          class_path: deepmetric.data.FolderDataset
          init_args:
            root: {image_folder}
            split: {{test: 8, val: 4, order: name}}
        model:
          class_path: deepmetric.models.EmbeddingModel
          init_args:
            backbone_args: {{blocks: 2, width: 16}}
            size: 16
            embedding_dim: 16
        loss: deepmetric.losses.MultiSimilarityLoss
        sampler:
          class_path: deepmetric.data.MPerClassSampler
          init_args: {{classes_per_batch: 6, instances: 4}}
        optimizer:
          class_path: torch.optim.Adam
          init_args: {{lr: 0.003}}
        schedule: deepmetric.training.CosineSchedule
        training: {{steps: 30, evaluate_every: 30, device: cpu}}
    """)
    assert main(["train", str(recipe), "--run", str(folder / "run")]) == 0
    return folder / "run"

from pathlib import Path

import pytest


@pytest.fixture
def recipe_file(tmp_path: Path, image_folder: Path) -> Path:
    """A recipe that trains in seconds, with every kind of part: memory, augmentation, schedule, own rates."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
data:
  class_path: deepmetric.data.FolderDataset
  init_args:
    root: {image_folder}
    split: {{test: 6, val: 6, order: name}}
model:
  class_path: deepmetric.models.EmbeddingModel
  init_args:
    backbone: deepmetric.models.ConvNet
    backbone_args: {{blocks: 2, width: 8}}
    embedding_dim: 16
    size: 16
loss:
  class_path: deepmetric.losses.MultiSimilarityLoss
memory:
  class_path: deepmetric.losses.CrossBatchMemory
  init_args: {{size: 50, warmup_steps: 5}}
sampler:
  class_path: deepmetric.data.MPerClassSampler
  init_args: {{classes_per_batch: 5, instances: 3}}
optimizer:
  class_path: torch.optim.Adam
  init_args: {{lr: 0.003}}
schedule:
  class_path: deepmetric.training.CosineSchedule
  init_args: {{warmup_steps: 4}}
augmentation:
  - class_path: torchvision.transforms.v2.RandomCrop
    init_args: {{size: 16}}
  - class_path: torchvision.transforms.v2.RandomHorizontalFlip
learning_rates: {{head: 0.01}}
training:
  steps: 30
  evaluate_every: 10
  checkpoint_every: 5
  log_every: 1
""")
    return path

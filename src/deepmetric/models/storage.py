"""A model as a folder: safetensors, JSON, and a card for people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from torch import nn

from deepmetric.errors import InputError

CONFIG = constants.CONFIG_NAME
WEIGHTS = constants.SAFETENSORS_SINGLE_FILE
_FRESH = ".saving-"

MODEL_CARD = """---
{{ card_data }}
---

An image embedding trained with deepmetric: images of one class lie close together.

```python
import deepmetric

model = deepmetric.load("path/of/this/folder or user/name on the Hub")
embeddings = model.embed(["a.jpg", "b.jpg"])  # float32 [2, d]
```

`config.json` holds the architecture and the preprocessing, `model.safetensors` the weights.
"""


@contextmanager
def put_in_place(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into; its files replace those of ``folder`` one by one when all are written.

    The weights come first: a config names an architecture, and saving again seldom changes that. A card that is
    there already stays, because somebody may have written in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_FRESH}*"):  # by a save that was killed
        rmtree(left)
    with TemporaryDirectory(dir=folder, prefix=_FRESH) as name:
        fresh = Path(name)
        yield fresh
        # safetensors makes its file readable for its writer alone; a service often runs as somebody else.
        (fresh / WEIGHTS).chmod((fresh / CONFIG).stat().st_mode)
        for file in sorted(fresh.iterdir(), key=lambda file: file.name != WEIGHTS):
            if not (file.name == "README.md" and (folder / file.name).exists()):
                os.replace(file, folder / file.name)


def find_weights(model_id: str, **hub: Any) -> str:
    """The path of the safetensors file of a folder or a Hub repository (downloaded). No other format is opened.

    Raises:
        InputError: the folder has no such file.
    """
    if not os.path.isdir(model_id):
        given = {name: value for name, value in hub.items() if value is not None}
        return hf_hub_download(model_id, WEIGHTS, **given)
    path = os.path.join(model_id, WEIGHTS)
    if not os.path.isfile(path):
        raise InputError(f"{model_id} has no {WEIGHTS}; expected a folder written by save_pretrained")
    return path


def fill_from_file(model: nn.Module, path: str, strict: bool = True) -> None:
    """Load a safetensors file into ``model``.

    Raises:
        InputError: the file is broken, or (``strict``) its keys or shapes are not the model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(model, path, strict=strict)
    except SafetensorError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise InputError(f"{path} does not match the model that its {CONFIG} describes. {error}") from error

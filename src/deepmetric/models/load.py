"""A trained model from where it lies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from deepmetric.errors import InputError, did_you_mean
from deepmetric.models.dotted import module_class
from deepmetric.models.storage import CONFIG
from deepmetric.models.weights import reachable

if TYPE_CHECKING:
    from deepmetric.models.embedding import EmbeddingModel

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load(path: str | Path, device: str | torch.device | None = None) -> EmbeddingModel:
    """A saved model, in evaluation mode, with no other knowledge than its folder.

    The class is the one that the folder's ``config.json`` names as ``class_path``. It is used only if it is a
    subclass of ``torch.nn.Module`` with huggingface_hub's mixin, and weights are read from safetensors alone: opening
    a stranger's model runs no code of theirs.

    Args:
        path: a model folder, a training run's folder (its ``model`` is taken), or ``user/name`` on the Hugging Face
            Hub.
        device: where to put the model; None: the CPU.

    Raises:
        InputError: nothing there, no model there, or a model that does not fit together.
    """
    place = str(path)
    if Path(place).exists():
        place = str(_model_folder(Path(place)))
        config_file = Path(place) / CONFIG
    else:
        config_file = _config_on_hub(place)
    try:
        config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{config_file} is not JSON: {error}") from error
    class_path = config.get("class_path") if isinstance(config, dict) else None
    if not isinstance(class_path, str):
        raise InputError(f"{config_file} names no class_path; is it the config of a deepmetric model?")
    cls = module_class(class_path, f"class_path in {config_file}")
    if not issubclass(cls, ModelHubMixin):
        raise InputError(
            f"class_path {class_path!r} in {config_file} has no huggingface_hub mixin to load it with"
        )
    model = cls.from_pretrained(place)
    return model.to(device or "cpu").eval()  # type: ignore[return-value]


def _model_folder(place: Path) -> Path:
    if place.is_file():
        raise InputError(f"{place} is a file; give the folder that holds it, with its {CONFIG}")
    for folder in (place, place / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if (place / "recipe.yaml").is_file():
        raise InputError(
            f"the run {place} has no model yet: {place / 'model' / CONFIG} is written at an evaluation"
        )
    there = ", ".join(sorted(entry.name for entry in place.iterdir())[:8]) or "nothing"
    raise InputError(f"{place} is no model: expected {CONFIG} in it (or in its folder model), found {there}")


def _config_on_hub(name: str) -> str:
    folder = Path(name).parent
    near = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    nothing_here = f"there is no folder {name}.{did_you_mean(Path(name).name, near)}"
    # runs/birds may be meant as a folder or as a name on the Hub; where runs is a folder here, it is the former.
    if not _HUB_ID.fullmatch(name) or folder.is_dir():
        raise InputError(nothing_here)
    try:
        return hf_hub_download(name, CONFIG, local_files_only=not reachable(constants.ENDPOINT))
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{nothing_here} On the Hub it could not be looked for: {constants.ENDPOINT} cannot be reached"
        ) from error
    except HfHubHTTPError as error:
        raise InputError(
            f"{nothing_here} Nor is there such a model on {constants.ENDPOINT}: {error}"
        ) from error

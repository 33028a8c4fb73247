"""A trained model from where it lies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from deepmetric.errors import InputError, did_you_mean
from deepmetric.models.dotted import module_class
from deepmetric.models.storage import CONFIG
from deepmetric.models.weights import reachable

if TYPE_CHECKING:
    from deepmetric.models.embedding import EmbeddingModel

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


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
    place, only_local = str(path), True
    if Path(place).exists():
        place = str(_model_folder(Path(place)))
        config_file = f"{place}/{CONFIG}"
    else:
        _refuse_what_is_no_hub_name(place)
        only_local = not reachable(constants.ENDPOINT)
        config_file = _config_on_hub(place, only_local)
    cls = _class_named_in(config_file)
    try:
        model = cls.from_pretrained(place, local_files_only=only_local)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(f"cannot get the weights of {place} from {constants.ENDPOINT}: {error}") from error
    return model.to(device or "cpu").eval()


def _class_named_in(config_file: str) -> type[EmbeddingModel]:
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
            f"class_path {class_path!r} in {config_file} has no huggingface_hub mixin to load it with; "
            "expected deepmetric.models.EmbeddingModel or a subclass"
        )
    return cast("type[EmbeddingModel]", cls)


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


def _refuse_what_is_no_hub_name(name: str) -> None:
    # runs/birds may be meant as a folder or as a name on the Hub; where runs is a folder here, it is the former.
    folder = Path(name).parent
    if not _HUB_NAME.fullmatch(name) or folder.is_dir():
        near = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise InputError(f"there is no folder {name}.{did_you_mean(Path(name).name, near)}")


def _config_on_hub(name: str, only_local: bool) -> str:
    try:
        return hf_hub_download(name, CONFIG, local_files_only=only_local)
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"there is no folder {name}, and on the Hub it could not be looked for: {constants.ENDPOINT} cannot be "
            "reached (no network, or HF_HUB_OFFLINE is set)"
        ) from error
    except HfHubHTTPError as error:
        raise InputError(
            f"there is no folder {name} and no such model on {constants.ENDPOINT}: {error}"
        ) from error

"""Weights for a backbone: from a local file, checked key by key; or whether a download can work at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from torch import Tensor, nn

from deepmetric.errors import InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a safetensors or torch file, on the CPU; never by unpickling code.

    A training checkpoint's ``state_dict`` or ``model`` entry is taken (the averaged weights first, where it has
    them), and the prefixes that DDP and torch.compile put before every key are taken off.

    Raises:
        InputError: no such file, another kind of file, a file that cannot be read, or one without tensors.
    """
    from timm.models import load_state_dict

    if not Path(path).is_file():
        raise InputError(f"weights: there is no file {path}")
    if Path(path).suffix not in SUFFIXES:
        raise InputError(f"weights: {path} is no {', '.join(SUFFIXES)} file")
    try:
        state = load_state_dict(path, device="cpu", weights_only=True)
    except Exception as error:  # the two readers raise a dozen kinds for a broken file
        raise InputError(f"weights: cannot read {path}: {error}") from error
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"weights: {path} holds no tensors by name; expected a state dict")
    return state


def load_exactly(
    module: nn.Module, state: Mapping[str, Tensor], path: str, also_allowed: Collection[str] = ()
) -> None:
    """Load ``state`` into ``module``, every key of it and no other.

    Batch normalisation's ``num_batches_tracked`` may be missing: published files from before torch 0.4.1 have none, and
    what it counts is of no use for anything but a running average over all batches.

    Args:
        module: what is filled.
        state: tensors by key.
        path: where they came from, for the error.
        also_allowed: keys that the file may have besides, such as those of a classifier that was taken off.

    Raises:
        InputError: keys are missing, unexpected, or of another shape; the message names them.
    """
    wanted = module.state_dict()
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    state = {**counters, **state}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted and key not in also_allowed]
    other_shape = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = {"missing keys": missing, "unexpected keys": unexpected, "shapes": other_shape}
    found = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
    if found:
        raise InputError(f"weights: {path} does not match the backbone. {found}")
    module.load_state_dict({key: state[key] for key in wanted})


def _some(keys: Sequence[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f", ... ({len(keys)} in all)" if len(keys) > most else "")


def reachable(url: str, timeout_seconds: float = 5.0) -> bool:
    """Whether ``url``'s server answers, asked once.

    huggingface_hub tries again for most of a minute before it gives up, and torch.hub waits without limit.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urlopen(Request(url, method="HEAD"), timeout=timeout_seconds):
            return True
    except HTTPError:  # an answer, even if it is a refusal
        return True
    except OSError:
        return False


def no_download(backbone: str, server: str) -> InputError:
    """The error for pretrained weights that cannot be had."""
    return InputError(
        f"pretrained: true needs the weights of {backbone} from {server}, which cannot be reached (no network, or "
        "HF_HUB_OFFLINE is set) and which are not in the local cache. Download them elsewhere and give the file as "
        "weights: PATH, or set pretrained: false"
    )

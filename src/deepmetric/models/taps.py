"""Feature maps from the inside of a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from deepmetric.errors import InputError, did_you_mean


class Taps:
    """Listens to modules inside a backbone, by their dotted names.

    Args:
        backbone: any module.
        names: modules of it, as ``backbone.named_modules()`` calls them.

    Raises:
        InputError: a name that the backbone does not have.
    """

    def __init__(self, backbone: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        # By thread: a model that serves may run in several at a time.
        self._heard: dict[int, dict[str, Any]] = {}
        modules = dict(backbone.named_modules())
        for name in self.names:
            if name not in modules or not name:
                raise InputError(
                    f"taps: the backbone has no module {name!r}.{did_you_mean(name, modules)} Its outermost modules: "
                    f"{', '.join(child for child, _ in backbone.named_children())}."
                )
            # A partial of a method and not a closure, so that a deep copy of the model listens to itself.
            modules[name].register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        heard = self._heard.get(get_ident())
        if heard is not None:
            heard[name] = output

    @contextmanager
    def listening(self) -> Iterator[dict[str, Any]]:
        """Outputs by name of the modules that run in this thread within the block."""
        heard: dict[str, Any] = {}
        self._heard[get_ident()] = heard
        try:
            yield heard
        finally:
            del self._heard[get_ident()]


def stages_of(backbone: nn.Module) -> list[str]:
    """The modules after which a backbone's depth is commonly divided, in order, the last included.

    A backbone says it itself in an attribute ``stages``; timm's models in their ``feature_info``; of a plain sequence,
    such as torchvision's, it is every child with parameters.

    Raises:
        InputError: none of these.
    """
    stages = getattr(backbone, "stages", None)
    if isinstance(stages, (list, tuple)):
        return [str(stage) for stage in stages]
    model = getattr(backbone, "model", None)
    known = getattr(model, "feature_info", None)
    if (
        isinstance(known, list)
        and known
        and all(isinstance(stage, dict) and "module" in stage for stage in known)
    ):
        return [f"model.{stage['module']}" for stage in known]
    if isinstance(backbone, nn.Sequential):
        children = [
            (name, child)
            for name, child in backbone.named_children()
            if any(True for _ in child.parameters())
        ]
        if len(children) == 1 and isinstance(children[0][1], nn.Sequential):
            return [f"{children[0][0]}.{stage}" for stage in stages_of(children[0][1])]
        return [name for name, _ in children]
    raise InputError(
        f"taps: {type(backbone).__name__} does not say where its stages end; name the modules to tap, for example "
        f"{', '.join([name for name, _ in backbone.named_children()][:3])} (dotted names as in named_modules())."
    )


def as_map(output: object, name: str, channels_last: bool) -> Tensor:
    """What a tapped module gave, as a feature map [B, C, h, w].

    Raises:
        InputError: it was something else.
    """
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"taps: {name} gives {found}; expected a feature map [B, C, h, w]. Tap another module."
        )
    return output.permute(0, 3, 1, 2) if channels_last else output

"""A class from its dotted path, and back."""

from __future__ import annotations

import inspect
from importlib import import_module

from torch import nn

from deepmetric.errors import InputError, did_you_mean


def module_class(path: str, what: str) -> type[nn.Module]:
    """The ``nn.Module`` subclass at ``path``, such as ``deepmetric.models.ConvNet``.

    Nothing but such a class is ever returned, because a caller is going to call it with arguments that may come from
    a file that somebody else wrote.

    Args:
        path: ``package.module.Class``.
        what: what the path is called where it was written, for the error.

    Raises:
        InputError: nothing can be imported there, or it is not a subclass of ``nn.Module``.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise InputError(f"{what} {path!r} is no dotted path: expected package.module.Class")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{what} {path!r}: cannot import {module_name!r} ({error}). Is the package installed, or its folder on "
            "PYTHONPATH?"
        ) from error
    if not hasattr(module, name):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise InputError(f"{what} {path!r}: {module_name!r} has no {name!r}.{did_you_mean(name, classes)}")
    found = getattr(module, name)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise InputError(f"{what} {path!r} is {found!r}; expected a subclass of torch.nn.Module")
    return found


def dotted_path(cls: type) -> str:
    """Where ``cls`` can be imported from: the package of its module, if it shows the class, else the module itself.

    >>> from deepmetric.models import ConvNet
    >>> dotted_path(ConvNet)
    'deepmetric.models.ConvNet'
    """
    package = cls.__module__.rpartition(".")[0]
    if package and getattr(import_module(package), cls.__qualname__, None) is cls:
        return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"

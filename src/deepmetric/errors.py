"""What a user did that cannot work, said so that it can be mended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args


class InputError(ValueError):
    """Wrong input from the user: a file, a recipe, an argument.

    The message names what was wrong, where, what was expected and how to mend it. The command line prints it
    without a traceback; any other exception is shown in full, because then the fault is ours.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest of ``choices``, or an empty string when none is near.

    >>> did_you_mean("epohcs", ["epochs", "seed"])
    " Did you mean 'epochs'?"
    """
    near = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(owner: str, name: str, value: object, literal: Any) -> None:
    """Raise InputError unless ``value``, the argument ``name`` of ``owner``, is one of the words of a ``Literal``.

    >>> from typing import Literal
    >>> check_choice("MyLoss", "form", "cosin", Literal["cosine", "distance"])
    Traceback (most recent call last):
    deepmetric.errors.InputError: `form` of MyLoss is 'cosin'; expected one of cosine, distance. Did you mean 'cosine'?
    """
    choices = get_args(literal)
    if value not in choices:
        raise InputError(
            f"`{name}` of {owner} is {value!r}; expected one of {', '.join(choices)}."
            f"{did_you_mean(str(value), choices)}"
        )


def check_widths(owner: str, name: str, widths: Sequence[int]) -> list[int]:
    """``widths`` as a list.

    Raises:
        InputError: there is none, or one is below 1.
    """
    if not widths or min(widths) < 1:
        raise InputError(
            f"`{name}` of {owner} is {list(widths)}; expected the width of each part, 1 or more each."
        )
    return list(widths)

"""What a user did that cannot work, said so that it can be mended."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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

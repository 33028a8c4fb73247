"""The command line: ``deepmetric COMMAND ...``.

Each command is a module of ``deepmetric.commands``; only the one that was asked for is imported, so that
``deepmetric --help`` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING

from deepmetric import __version__
from deepmetric.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

COMMANDS = {
    "train": "learn an embedding from labelled items, as a recipe says; resume a run",
    "evaluate": "measure retrieval on classes that the model never saw",
    "embed": "write the embeddings of a data set to a file",
    "index": "build a search index over a data set",
    "search": "find the nearest items of an index for images",
    "benchmark": "compare systems by class-disjoint cross-validation, with intervals and tests",
    "tune": "search for settings of systems on the validation classes of a benchmark's folds",
    "recipes": "list the recipes that come with deepmetric",
    "data": "check a data set, or export one as a folder of images",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: deepmetric COMMAND ...",
            "",
            "Learn a metric from labelled items, measure it on unseen classes, search with it.",
            "",
            "commands:",
            *lines,
            "",
            "`deepmetric COMMAND --help` tells what a command takes; `deepmetric --version` the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 fine, 1 a check failed, 2 wrong input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        # Names of files and classes need not be printable here, and results are not lost for that.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"deepmetric {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(
            f"error: there is no command {name!r}.{did_you_mean(name, COMMANDS)}\n\n{usage()}",
            file=sys.stderr,
        )
        return 2
    try:
        return _run(name, import_module(f"deepmetric.commands.{name}"), rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has closed it
        sys.stderr.close()
        return 1
    except OSError as error:  # not there, read-only, full
        about = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        print(f"error: {about}", file=sys.stderr)
        return 2


def _run(name: str, command: ModuleType, argv: list[str]) -> int:
    # `train` builds its own parser: its options are the keys of a recipe.
    if hasattr(command, "main"):
        return command.main(argv)
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"deepmetric {name}", description=command.HELP)
    command.configure(parser)
    return command.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

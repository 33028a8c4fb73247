"""A copy of a benchmark in a folder or a zip archive: its lists, found and read."""

from __future__ import annotations

from pathlib import Path

from deepmetric.data.benchmarks.check import NotTheBenchmark
from deepmetric.data.files import open_files
from deepmetric.errors import InputError


class Copy:
    """The files under ``root``, where the benchmark's own folder may be ``root`` itself or one folder further down.

    Args:
        root: a folder or a .zip archive.
        benchmark: what it should be, for error messages.
        layout: the files that are expected, for error messages.
    """

    def __init__(self, root: Path, benchmark: str, layout: str) -> None:
        self.root, self.benchmark, self.layout = root, benchmark, layout
        self.files = open_files(root)
        self._tops = ["", *(f"{name}/" for name in self.files.tops())]

    def find(self, *names: str) -> tuple[str, str] | None:
        """(the folder under the root with a closing ``/``, the name) of the first name that is there."""
        for name in names:
            for top in self._tops:
                if self.has(top + name):
                    return top, name
        return None

    def find_or_refuse(self, *names: str) -> tuple[str, str]:
        """:meth:`find`, or the error that says what was looked for."""
        found = self.find(*names)
        if found is None:
            raise NotTheBenchmark(
                f"no {self.benchmark} at {self.root}: neither it nor a folder in it holds {' or '.join(names)}. "
                f"Expected {self.layout}"
            )
        return found

    def has(self, name: str) -> bool:
        """Whether a file or folder of that name is there."""
        return self.files.present([name])[0]

    def read(self, name: str) -> bytes:
        """The bytes of one of the benchmark's own lists."""
        if not self.has(name):
            raise NotTheBenchmark(
                f"no {self.benchmark} at {self.root}: it lacks {name}. Expected {self.layout}"
            )
        return self.files.read(name)

    def table(self, name: str, columns: int, skip: int = 0) -> list[list[str]]:
        """The lines of a list split at blanks into ``columns`` fields, the first ``skip`` and empty ones left out."""
        rows = []
        for number, line in enumerate(
            self.read(name).decode("utf8", "replace").splitlines()[skip:], skip + 1
        ):
            fields = line.strip().split(None, columns - 1)
            if not fields:
                continue
            if len(fields) != columns:
                raise InputError(
                    f"{self.files.path(name)}, line {number}: expected {columns} fields, got {line[:80]!r}. "
                    "Take the file from the original archive again"
                )
            rows.append(fields)
        if not rows:
            raise InputError(f"{self.files.path(name)} is empty. Take it from the original archive again")
        return rows

    def whole_number(self, text: str, name: str) -> int:
        """A number in the list ``name``."""
        try:
            return int(text)
        except ValueError:
            raise InputError(
                f"{self.files.path(name)}: expected a whole number, got {text[:80]!r}. Take the file from the "
                "original archive again"
            ) from None

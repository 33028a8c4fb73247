"""A tree of files, on disk or inside a zip archive, read in the same way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from deepmetric.data.images import EXTENSIONS, unreadable
from deepmetric.errors import InputError


class Listing(NamedTuple):
    """Names relative to the root, with ``/`` between the parts, hidden ones and ``__MACOSX`` left out."""

    images: list[str]
    folders: list[str]


def _hidden(part: str) -> bool:
    # "." alone: some programs pack a folder as ./class/image
    return (part.startswith(".") and part != ".") or part == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether the name's extension is an image's."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _can_be_listed(folder: str) -> bool:
    try:
        os.scandir(folder).close()
    except PermissionError:  # a disk's lost+found is closed to all but root
        return False
    return True


class FolderFiles:
    """Files under a folder; linked folders are followed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> Listing:
        images: list[str] = []
        folders: list[str] = []

        def visit(folder: str, above: tuple[str, ...]) -> None:
            if folder:
                folders.append(folder)
            for entry in self._entries(folder):
                if _hidden(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not entry.is_dir():
                    if is_image(name):
                        images.append(name)
                elif (
                    real := os.path.realpath(entry.path)
                ) not in above:  # else a link back to a folder above
                    visit(name, (*above, real))

        visit("", (os.path.realpath(self.root),))
        return Listing(images, folders)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                return list(entries)
        except OSError as error:
            raise InputError(f"cannot list the folder {self.root / folder}: {error.strerror}") from error

    def tops(self) -> list[str]:
        """The folders directly under the root that can be listed, sorted."""
        return sorted(
            entry.name
            for entry in self._entries("")
            if entry.is_dir() and not _hidden(entry.name) and _can_be_listed(entry.path)
        )

    def present(self, names: Sequence[str]) -> list[bool]:
        """Whether each name is there. Folders are listed, each once; no file is looked at by itself."""
        there: dict[str, set[str]] = {}
        found = []
        for name in names:
            folder, _, file = name.rpartition("/")
            if folder not in there:
                is_there = os.path.isdir(self.root / folder)
                there[folder] = {entry.name for entry in self._entries(folder)} if is_there else set()
            found.append(file in there[folder])
        return found

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def read(self, name: str) -> bytes:
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except OSError as error:
            raise unreadable(self.path(name), error.strerror or str(error)) from error


class ZipFiles:
    """Members of a zip archive, read without unpacking. Each process opens the archive for itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._forget()
        try:
            self._archive()
        except (BadZipFile, OSError) as error:
            raise InputError(f"cannot open the zip archive {root}: {error}") from error

    def list(self) -> Listing:
        images: list[str] = []
        folders: set[str] = set()
        for name in dict.fromkeys(self._archive().namelist()):
            parts = name.rstrip("/").split("/")
            if any(_hidden(part) for part in parts):
                continue
            parents = parts if name.endswith("/") else parts[:-1]
            folders.update("/".join(parents[: i + 1]) for i in range(len(parents)))
            if not name.endswith("/") and is_image(name):
                images.append(name)
        return Listing(images, sorted(folders))

    def tops(self) -> list[str]:
        """The folders directly under the root, sorted."""
        tops = {name.partition("/")[0] for name in self._archive().namelist() if "/" in name}
        return sorted(name for name in tops if not _hidden(name))

    def present(self, names: Sequence[str]) -> list[bool]:
        """Whether each name is a member's, by the archive's table of contents."""
        if self._members is None:
            self._members = set(self._archive().namelist())
        return [name in self._members for name in names]

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def read(self, name: str) -> bytes:
        try:
            return self._archive().read(name)
        except (
            Exception
        ) as error:  # a wrong checksum, a broken stream, a password: zipfile has no common class
            raise unreadable(self.path(name), str(error)) from error

    def _archive(self) -> ZipFile:
        # After a fork, parent and child would share one file offset and read each other's bytes.
        if self._pid != os.getpid():
            self._handle, self._pid = ZipFile(self.root), os.getpid()
        assert self._handle is not None
        return self._handle

    def _forget(self) -> None:
        self._handle: ZipFile | None = None
        self._pid = -1
        self._members: set[str] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()


def open_files(root: Path) -> FolderFiles | ZipFiles:
    """The files of a folder or of a .zip archive.

    Raises:
        InputError: nothing at ``root``, or neither of the two.
    """
    if not root.exists():
        raise InputError(f"no folder or zip file at {root}")
    if root.is_dir():
        return FolderFiles(root)
    if root.suffix.lower() == ".zip":
        return ZipFiles(root)
    raise InputError(f"{root} is neither a folder nor a .zip file")

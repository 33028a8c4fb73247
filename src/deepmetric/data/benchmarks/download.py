"""Large files over HTTP: continued where they were cut, checked, and whole or absent."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import time
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from deepmetric.atomic import sync
from deepmetric.errors import InputError

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60
# Tries in a row that bring nothing; one that brings something starts the count again.
TRIES = 5


class Archive(NamedTuple):
    """A file on a server, as it was published."""

    url: str
    md5: str


def download_and_unpack(archive: Archive, folder: Path) -> None:
    """Fetch an archive (.zip, .tgz, .tar.gz) into ``folder`` and unpack it there; the archive stays beside."""
    path = download(archive, folder)
    if path.suffix == ".zip":
        shutil.unpack_archive(path, folder)
    else:
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")


def download(archive: Archive, folder: Path, *, wait_seconds: float = 1.0) -> Path:
    """Fetch a file into ``folder``; a cut connection or a killed process goes on from where it was.

    What has come is kept as ``NAME.part``; the file takes its name once it is whole and its checksum is right.

    Args:
        archive: what to fetch.
        folder: made where it is not there.
        wait_seconds: pause before the second try in a row that brings nothing, doubled before each further one.

    Returns:
        The path of the file. One that is there already is taken when its checksum is right.

    Raises:
        InputError: the server has no such file or does not answer, or the content is not what was published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / archive.url.rpartition("/")[2]
    if path.exists():
        _verify(path, archive)
        return path
    part = path.with_name(path.name + ".part")
    idle = 0
    while True:
        before = _size(part)
        try:
            if _fetch(archive.url, part):
                break
            reason = "the connection was closed early"
        except HTTPError as error:
            if error.code < 500:
                raise InputError(
                    f"cannot download {archive.url}: the server says {error.code} {error.reason}"
                ) from error
            reason = f"the server says {error.code} {error.reason}"
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = str(error)
        idle = 0 if _size(part) > before else idle + 1
        if idle == TRIES:
            raise InputError(
                f"cannot download {archive.url}: {reason}. {_size(part):,} bytes are kept in {part}; try again later "
                "and it goes on from there"
            )
        if idle:
            time.sleep(wait_seconds * 2 ** (idle - 1))
    _verify(part, archive)
    sync(part)
    os.replace(part, path)
    return path


def _fetch(url: str, part: Path) -> bool:
    """Append to ``part`` what the server gives from there on; whether the file is then whole."""
    have = _size(part)
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if (
            error.code == 416 and have
        ):  # nothing from there on: it was whole already, or the checksum will tell
            return True
        raise
    with response, open(part, "ab") as file:
        begins = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status != 206 or begins is None or int(begins[1]) != have:
            file.truncate(have := 0)  # the server gives all of it from the start
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar:
            _append(response, file, bar)
    return total is None or _size(part) >= total


def _append(response: BinaryIO, file: BinaryIO, bar: tqdm) -> None:
    while chunk := response.read(CHUNK):
        file.write(chunk)
        bar.update(len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verify(path: Path, archive: Archive) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() == archive.md5:
        return
    if path.suffix == ".part":
        path.unlink()  # going on from it would never end well
    raise InputError(
        f"{path} from {archive.url} has the checksum {digest.hexdigest()} instead of {archive.md5}: it is broken, or "
        "not the file that was published. Remove it and download it again"
    )

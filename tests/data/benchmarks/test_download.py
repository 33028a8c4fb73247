"""Downloads from a server that cuts them, ignores ranges, or has something else."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from deepmetric.cli import main
from deepmetric.data import CUB200
from deepmetric.data.benchmarks import base
from deepmetric.data.benchmarks.download import TRIES, Archive, download
from deepmetric.errors import InputError

CONTENT = np.random.default_rng(0).integers(0, 256, 5_000_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """One file under every name.

    content: the file.
    gives: the most bytes a connection gives before it is cut, or stalls.
    stalls: wait instead of cutting.
    ranges: whether a Range header is heeded.
    asked: the Range header of each request, "" for none.
    """

    content = CONTENT
    gives = 10**9
    stalls = False
    ranges = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.over = threading.Event()

    def archive(self, name: str = "a.bin", md5: str = MD5) -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_address[1]}/{name}", md5)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        asked = self.headers.get("Range", "")
        server.asked.append(asked)
        begin = int(re.findall(r"\d+", asked)[0]) if asked and server.ranges else 0
        if server.status != 200 or (begin and begin >= len(content)):
            self.send_error(server.status if server.status != 200 else 416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin : begin + server.gives])
        if server.stalls:
            self.wfile.flush()
            server.over.wait(30)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def test_a_cut_connection_goes_on(server: Server, tmp_path: Path):
    server.gives = 2_000_000
    path = download(server.archive(), tmp_path, wait_seconds=0)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=2000000-", "bytes=4000000-"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]
    download(server.archive(), tmp_path)  # there already
    assert len(server.asked) == 3


def test_a_server_without_ranges_begins_again(server: Server, tmp_path: Path):
    (tmp_path / "a.bin.part").write_bytes(b"something older and of no use")
    server.ranges = False
    assert download(server.archive(), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server: Server, tmp_path: Path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert download(server.archive(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_killed_process_goes_on(server: Server, tmp_path: Path):
    server.gives, server.stalls = 3_000_000, True
    program = f"""
from pathlib import Path
from deepmetric.data.benchmarks.download import Archive, download
download(Archive({server.archive().url!r}, {MD5!r}), Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    part = tmp_path / "a.bin.part"
    try:
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size >= 1_000_000):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "a.bin").exists()
    kept = part.stat().st_size
    server.stalls, server.gives = False, 10**9
    server.over.set()
    assert download(server.archive(), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={kept}-"


def test_another_content_is_refused_and_not_kept(server: Server, tmp_path: Path):
    wrong = server.archive(md5="0" * 32)
    with pytest.raises(InputError, match=f"has the checksum {MD5} instead of 000"):
        download(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.bin").write_bytes(b"?")
    with pytest.raises(InputError, match="Remove it and download it again"):
        download(server.archive(), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"?"


def test_what_the_server_refuses(server: Server, tmp_path: Path):
    server.status = 404
    with pytest.raises(InputError, match="the server says 404"):
        download(server.archive(), tmp_path)
    assert len(server.asked) == 1
    server.status = 503
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:7])
    with pytest.raises(InputError, match=r"the server says 503.*7 bytes are kept in .*a.bin.part"):
        download(server.archive(), tmp_path, wait_seconds=0)
    assert len(server.asked) == 1 + TRIES
    server.status = 200
    assert download(server.archive(), tmp_path).read_bytes() == CONTENT


@pytest.fixture
def birds(server: Server, monkeypatch) -> Server:
    """The server has a CUB of one image."""
    files = {
        "images.txt": "1 001.A/a.jpg\n",
        "classes.txt": "1 001.A\n",
        "image_class_labels.txt": "1 1\n",
        "images/001.A/a.jpg": "",
    }
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"CUB_200_2011/{name}")
            member.size = len(text)
            tar.addfile(member, BytesIO(text.encode()))
    server.content = packed.getvalue()
    archive = server.archive("CUB_200_2011.tgz", hashlib.md5(packed.getvalue()).hexdigest())
    monkeypatch.setattr(CUB200, "archives", (archive,))
    return server


def test_a_benchmark_is_fetched_and_unpacked(birds: Server, tmp_path: Path, monkeypatch, capsys):
    server = birds
    assert main(["data", "download", "cub", str(tmp_path / "birds")]) == 2
    assert "train: 1 of 5,864 images" in capsys.readouterr().err
    assert CUB200(tmp_path / "birds", partial=True).ids == ["001.A/a.jpg"]
    # A whole copy is not fetched again.
    monkeypatch.setattr(CUB200, "published", {"train": {"images": 1, "classes": 1}})
    before = len(server.asked)
    assert CUB200(tmp_path / "birds", download=True).name == "CUB-200-2011"
    assert len(server.asked) == before
    with pytest.raises(InputError, match="name a folder to download"):
        CUB200(tmp_path / "birds.zip", download=True)


def test_processes_that_open_together_fetch_once(birds: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(CUB200, "published", {"train": {"images": 1, "classes": 1}})
    barrier, fetch = Barrier(3), base.download_and_unpack

    def slow(*arguments) -> None:
        time.sleep(0.2)  # all are past their first look
        fetch(*arguments)

    monkeypatch.setattr(base, "download_and_unpack", slow)

    def open_it(_: int) -> list[str]:
        barrier.wait()
        return CUB200(tmp_path / "birds", download=True).ids

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(open_it, range(3))) == [["001.A/a.jpg"]] * 3
    assert birds.asked == [""]


def test_a_list_that_was_half_unpacked_is_unpacked_again(birds: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(CUB200, "published", {"train": {"images": 1, "classes": 1}})
    CUB200(tmp_path, download=True)
    (tmp_path / "CUB_200_2011/images.txt").write_text("1")
    with pytest.raises(InputError, match="expected 2 fields"):
        CUB200(tmp_path)
    assert CUB200(tmp_path, download=True).ids == ["001.A/a.jpg"]
    assert birds.asked == [""]


def test_what_nobody_may_fetch(tmp_path: Path, capsys):
    assert main(["data", "download", "inshop", str(tmp_path)]) == 2
    assert "sign their agreement" in capsys.readouterr().err

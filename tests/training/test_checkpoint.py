import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from deepmetric.errors import InputError
from deepmetric.training.checkpoint import load_checkpoint, save_checkpoint


def test_round_trip(tmp_path):
    state = {"w": torch.arange(3.0), "progress": {"step": 3, "best": -float("inf")}, "names": ["a"]}
    save_checkpoint(tmp_path / "deep" / "last.pt", state)
    read = load_checkpoint(tmp_path / "deep" / "last.pt")
    assert read["progress"] == state["progress"]
    assert torch.equal(read["w"], state["w"])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["last.pt"]


def test_failed_write_leaves_the_old_one(tmp_path):
    file = tmp_path / "last.pt"
    save_checkpoint(file, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(file, {"step": 2, "bad": lambda: None})
    assert load_checkpoint(file) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint at .*last.pt"):
        load_checkpoint(tmp_path / "last.pt")
    (tmp_path / "last.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"last.pt cannot be read .*without it --resume begins"):
        load_checkpoint(tmp_path / "last.pt")


def test_killed_while_writing_leaves_a_whole_checkpoint(tmp_path):
    """A process that only writes checkpoints is really killed, at several moments."""
    file = tmp_path / "last.pt"
    program = (
        "import sys, torch; from pathlib import Path; from deepmetric.training.checkpoint import save_checkpoint\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    save_checkpoint(Path(sys.argv[1]), {'n': n, 'w': torch.full((500_000,), float(n))})\n"
    )
    for delay in (0.013, 0.029, 0.041):
        process = subprocess.Popen([sys.executable, "-c", program, str(file)])
        try:
            start = file.stat().st_mtime_ns if file.exists() else 0
            deadline = time.monotonic() + 60
            while not (file.exists() and file.stat().st_mtime_ns > start):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.005)
            time.sleep(delay)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        state = load_checkpoint(file)
        assert (state["w"] == state["n"]).all()

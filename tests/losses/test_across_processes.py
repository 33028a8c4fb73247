"""Every public loss and the memory over several processes equal one process with the joined batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepmetric.errors import InputError
from deepmetric.losses import ContrastiveLoss, across_processes


def test_equals_one_process(tmp_path: Path) -> None:
    """Two processes, then three, which begin with the memory that the two have saved. What is compared stands in
    across_processes.py beside this file."""
    script = Path(__file__).with_name("across_processes.py")
    command = [sys.executable, str(script), str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.pt", "3.pt"]


def test_without_processes_it_says_so() -> None:
    with pytest.raises(InputError, match="init_process_group"):
        across_processes(ContrastiveLoss())

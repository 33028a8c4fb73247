"""The blockwise search: selection, independence of the block size, bounded memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.evaluation import retrieval_metrics
from deepmetric.evaluation.ranks import top_values


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 700),
    share=st.floats(0, 1),
    levels=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 1000),
)
def test_top_values_are_those_of_topk(rows, size, share, levels, seed) -> None:
    k = max(1, int(size * share**4))
    s = torch.randint(levels, (rows, size), generator=torch.Generator().manual_seed(seed)).float()
    s[:, seed % size] = -torch.inf
    value, index = top_values(s.T.contiguous(), k)
    assert torch.equal(value, s.topk(k).values)
    assert torch.equal(s.gather(1, index), value)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.usefixtures("any_way")
@pytest.mark.parametrize("per_class", [2, 30, 500])
def test_block_size_does_not_matter(per_class: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepmetric.evaluation.neighbours.BLOCK_ROWS", 1)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1500) // per_class
    x = torch.randn(int(labels.max()) + 1, 32, generator=generator)[labels]
    x = (x + 2 * torch.randn(1500, 32, generator=generator)).double()
    x[100:200] = x[300:400]  # copies, within and between classes
    whole = retrieval_metrics(x, labels, block_bytes=2**30)
    for rows in (1, 7, 64):
        part = retrieval_metrics(x, labels, block_bytes=rows * 1500 * 8)
        for name, column in whole.per_query.items():
            np.testing.assert_allclose(column, part.per_query[name], atol=1e-12)


@pytest.mark.usefixtures("any_way")
def test_one_large_class_among_small_ones(slow_metrics) -> None:
    rng = np.random.default_rng(0)
    labels = np.append(np.zeros(200, int), 1 + np.arange(100) // 2)
    x = rng.normal(size=(51, 8))[labels] + rng.normal(size=(300, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    want = slow_metrics(x @ x.T, labels, labels, np.arange(300), (1, 4))
    got = retrieval_metrics(x, labels, ks=(1, 4), block_bytes=20 * 300 * 8)
    for name, column in want.items():
        np.testing.assert_allclose(got.per_query[name], column, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["good", "collapsed", "large classes"])
def test_memory_is_bounded(kind: str) -> None:
    """12,000 x 12,000 similarities would be 549 MB, a Boolean mask of them 137 MB."""
    script = f"""
        import re, torch
        from deepmetric.evaluation import retrieval_metrics
        torch.set_num_threads(1)
        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
        labels = torch.arange(12_000) // 4
        x = torch.randn(3_000, 8)[labels] + 0.5 * torch.randn(12_000, 8)
        if {kind!r} == "collapsed":
            x, labels = x[:1].expand(12_000, -1).contiguous(), torch.arange(12_000) // 40
        if {kind!r} == "large classes":
            labels = torch.arange(12_000) // 1_000
        retrieval_metrics(x[:500], labels[:500])
        before = peak()
        retrieval_metrics(x, labels, ks=(1, 100), block_bytes=2**23)
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100

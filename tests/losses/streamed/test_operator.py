"""What the operator promises besides equality: derivatives, precision, memory, autocast, compile, positions."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from deepmetric.losses.streamed import Comparison, operator


def data(n=9, m=30, d=4, classes=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    refs = torch.randn(m, d, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(classes, (n,), generator=g), refs, torch.randint(classes, (m,), generator=g)


@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("kind", ["dot", "squared", "distance"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_of_every_reduction(width: int, kind, normalize: bool) -> None:
    x, labels, refs, ref_labels = data()
    t = torch.linspace(0.3, 0.9, len(x), dtype=torch.float64)

    def reductions(x, refs, t):
        c = Comparison(
            x, labels, refs, ref_labels, None, kind=kind, normalize=normalize, width=width, listed=0
        )
        for side in (c.negatives, c.positives):
            yield side.logsumexp(-1.5)
            yield side.logsumexp(fn=lambda v, t: t * v.square(), params=(t,))
            yield side.hinge_sum(t, above=True)[0]
            yield side.hinge_sum(t, above=False, squared=True)[0]
            yield side.softplus_sum(2.0, t)
            yield side.sum(lambda v, t: torch.sin(t * v), t)
        p = c.positive_list
        yield c.negatives.hinge_over_positives(p, p.values - 0.3)[0]
        yield c.negatives.hinge_over_positives(p, p.values - 0.3, soft=True)[0]

    def joined(*inputs):
        return torch.cat([torch.where(out.isfinite(), out, 0) for out in reductions(*inputs)])

    inputs = tuple(leaf.clone().requires_grad_() for leaf in (x, refs, t))
    assert gradcheck(joined, inputs, fast_mode=True)


@pytest.mark.parametrize("side_by_side", [256, 0])
@pytest.mark.parametrize("kind", ["dot", "distance"])
@pytest.mark.parametrize("share", [0, 2, 30, 60])
def test_references_without_a_weight_are_left_out(monkeypatch, side_by_side: int, kind, share: int) -> None:
    """Weights of both signs at 0 to 60 of 64 references, 0 at those that are all the same point."""
    monkeypatch.setattr(operator, "SIDE_BY_SIDE", side_by_side)
    picked, ask = [], operator._weighed
    monkeypatch.setattr(operator, "_weighed", lambda weights: picked.append(ask(weights)) or picked[-1])
    x, labels, refs, _ = data(m=64)
    refs[torch.randperm(64, generator=torch.Generator().manual_seed(1))[share:]] = x[0]
    unit_refs = torch.nn.functional.normalize(refs)

    def values(anchors):
        product = torch.nn.functional.normalize(anchors) @ unit_refs.T
        return product if kind == "dot" else (2 - 2 * product).clamp_min(1e-12).sqrt()

    at_point = values(x)[:, (refs == x[0]).all(1).nonzero()[0, 0]]

    def cost(v, t):
        return torch.where((v - t).abs() > 1e-6, torch.sin(9 * v), 0)

    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    pairs = Comparison(leaf, labels, refs, torch.full((64,), 9), None, kind=kind, width=16)
    value, truth = pairs.negatives.sum(cost, at_point).sum(), cost(values(other), at_point[:, None]).sum()
    value.backward()
    truth.backward()
    assert_close(value, truth)
    assert_close(leaf.grad, other.grad)
    assert [p is not None for p in picked] == ([True] * 4 if share <= 2 else [False])


@pytest.mark.parametrize("size", [0.1, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("band", [False, True])
def test_soft_triplets_of_rows_of_any_size(size: float, dtype: torch.dtype, band: bool) -> None:
    """Dot products up to 0.1 or to 10,000: exponentials that all thresholds share, and terms by themselves."""
    x, labels, refs, ref_labels = data(m=60)
    x, refs = size * x.to(dtype), size * refs.to(dtype)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    pairs = Comparison(leaf, labels, refs, ref_labels, None, normalize=False, width=16)
    p = pairs.positive_list
    within = {"start": p.values - 1, "stop": p.values + 2} if band else {}
    value, count = pairs.negatives.hinge_over_positives(p, p.values - 0.5, soft=True, **within)
    v = other @ refs.T
    positive = labels[:, None] == ref_labels
    cost = v[:, None, :] - (v[:, :, None] - 0.5)  # anchor, positive, negative
    counted = positive[:, :, None] & ~positive[:, None, :]
    if band:
        counted &= (v[:, None, :] > v[:, :, None] - 1) & (v[:, None, :] < v[:, :, None] + 2)
    truth = torch.where(counted, torch.nn.functional.softplus(cost, threshold=40.0), 0).sum((1, 2))
    value.sum().backward()
    truth.sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-4 * size} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    assert_close(value, truth, **close)
    assert_close(leaf.grad, other.grad, **close)
    if band:
        assert_close(count, counted.sum((1, 2)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(forms, dtype: torch.dtype, autocast: bool) -> None:
    x, labels, refs, ref_labels = data(d=32, dtype=dtype)
    leaf, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = forms.multi_similarity(Comparison(leaf, labels, refs, ref_labels, None, width=8))
        loss.backward()
    truth = forms.multi_similarity(Comparison(wide, labels, refs.float(), ref_labels, None, width=8))
    truth.backward()
    assert loss.dtype == torch.float32
    assert_close(loss, truth, rtol=1e-6, atol=0)
    assert leaf.grad is not None
    assert_close(leaf.grad, wide.grad.to(dtype))


def test_large_exponents_do_not_overflow() -> None:
    x, labels, refs, ref_labels = data(dtype=torch.float32)
    c = Comparison(100 * x, labels, 100 * refs, ref_labels, None, normalize=False, width=4)
    value = c.negatives.logsumexp(3.0)
    top = torch.where(labels[:, None] != ref_labels, 3 * (100 * x) @ (100 * refs).T, -torch.inf)
    assert_close(value, top.logsumexp(1))


def test_own_copy_is_left_out_by_position_and_duplicates_stay() -> None:
    row = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    x = row.repeat(3, 1)
    labels = torch.tensor([0, 0, 1])
    c = Comparison(x, labels, x, labels, torch.arange(3))
    assert c.positive_count.tolist() == [1, 1, 0]
    assert c.negative_count.tolist() == [1, 1, 2]
    assert c.positives.max().tolist() == pytest.approx([1, 1, -torch.inf])
    # The own copy may lie anywhere, and may even carry another label there.
    c = Comparison(x, labels, x, torch.tensor([1, 0, 0]), torch.tensor([1, 0, -1]))
    assert c.positive_count.tolist() == [1, 2, 1]
    assert c.negative_count.tolist() == [1, 0, 2]


def test_copies_of_another_class_have_distance_and_slope_zero() -> None:
    x = torch.nn.functional.normalize(torch.randn(6, 50, dtype=torch.float64))
    for dtype in (torch.float64, torch.float32):
        leaf = x.to(dtype).clone().requires_grad_()
        c = Comparison(
            leaf, torch.arange(6), leaf.detach().clone(), torch.arange(6) + 1, None, kind="distance"
        )
        value = c.negatives.min()
        assert value.tolist() == [0.0] * 6
        nearest, _ = c.negatives.hinge_sum(0.01, above=False)
        nearest.sum().backward()
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_nothing_of_a_memory_without_gradient_is_kept(forms) -> None:
    x, labels, refs, ref_labels = data(n=6, m=40)
    gradients = []
    for overwrite in (False, True):
        leaf, memory = x.clone().requires_grad_(), refs.clone()
        loss = forms.multi_similarity(Comparison(leaf, labels, memory, ref_labels, None, width=8))
        if overwrite:
            memory.zero_()
        loss.backward()
        gradients.append(leaf.grad)
    assert_close(*gradients)


def test_a_compiled_caller_works(forms) -> None:
    x, labels, refs, ref_labels = data(dtype=torch.float32)

    def step(x):
        return forms.multi_similarity(Comparison(2 * x, labels, refs, ref_labels, None, width=8)) * 2

    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = torch.compile(step, backend="aot_eager")(leaf)
    value.backward()
    truth = step(other)
    truth.backward()
    assert_close(value, truth)
    assert_close(leaf.grad, other.grad)


def test_samples_follow_the_weights() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    x[:, 0] = 1
    angle = torch.linspace(0, 3, 12, dtype=torch.float64)
    refs = torch.stack([angle.cos(), angle.sin()], 1)
    labels = torch.zeros(12, dtype=torch.int64)
    labels[3] = 1
    c = Comparison(x, torch.tensor([1, 1]), refs, labels, None, width=5)
    torch.manual_seed(0)
    # Weights over 1400 e-folds: only what is near the row's best may be drawn.
    assert set(c.negatives.sample(lambda s: 700 * s, 50)[0].tolist()) == {0}
    drawn = torch.bincount(c.negatives.sample(lambda s: s, 40000)[0], minlength=12) / 40000
    weight = angle.cos().exp() * (labels == 0)
    assert_close(drawn.double(), weight / weight.sum(), atol=0.01, rtol=0)
    assert (c.negatives.sample(lambda s: torch.full_like(s, -torch.inf), 3) == -1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of /proc")
@pytest.mark.parametrize("classes", [11318, 10])
def test_memory_stays_bounded(classes: int) -> None:
    """256 x 65,536: the matrix alone would take 64 MiB, its masks and gradients several times that."""
    script = f"""
    import importlib.util, pathlib, torch
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("forms", {str(__file__).replace("test_operator", "forms")!r})
    forms = importlib.util.module_from_spec(spec); spec.loader.exec_module(forms)
    from deepmetric.losses.streamed import Comparison
    g = torch.Generator().manual_seed(0)
    refs, ref_labels = torch.randn(65536, 128, generator=g), torch.randint({classes}, (65536,), generator=g)
    x, labels = torch.randn(256, 128, generator=g), torch.randint({classes}, (256,), generator=g)
    def step(m):
        for loss in (forms.multi_similarity, forms.contrastive_cosine):
            leaf = x.clone().requires_grad_()
            loss(Comparison(leaf, labels, refs[:m], ref_labels[:m], None)).backward()
    step(2048)
    def status(field):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    step(65536)
    print(status("VmHWM") - before)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < (30 if classes > 1000 else 60)

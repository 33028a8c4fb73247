"""What the operator promises besides equality: derivatives, precision, memory, autocast, compile, positions."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import weakref

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


def test_rows_of_zeros_are_at_one_distance_however_large_the_problem() -> None:
    """From a unit row and from each other √2, as of a cosine of 0: listed pairs too."""
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[0, 0] = 1
    labels = torch.zeros(3, dtype=torch.int64)
    for width in (None, 2):
        leaf = x.clone().requires_grad_()
        c = Comparison(leaf, labels, leaf, labels, torch.arange(3), kind="distance", width=width)
        assert_close(c.positive_list.values, torch.full((6,), 2**0.5, dtype=torch.float64))
        assert c.positives.max().tolist() == pytest.approx([2**0.5] * 3)
        c.positive_list.values.sum().backward()
        assert leaf.grad is not None
        assert_close(leaf.grad[1:, 0], torch.full((2,), -(2**0.5), dtype=torch.float64))


@pytest.mark.parametrize("kind", ["squared", "distance"])
def test_copies_whose_product_rounds_far_above_one_are_at_distance_0(kind) -> None:
    """Equal addends: the dot product of such a unit row with itself is up to ten roundings above 1."""
    x = torch.eye(64, 256) + 1
    c = Comparison(x, torch.arange(64), x.clone(), torch.arange(64) + 100, None, kind=kind, width=256)
    value = c.negatives.sum(lambda v: v)
    assert value.isfinite().all()
    assert c.negatives.min().tolist() == [0.0] * 64


def test_two_outputs_share_distances_of_zero() -> None:
    """Both gradients of an exponential hinge leave out a direction that does not exist."""
    x, labels, *_ = data(n=6, m=6, dtype=torch.float32)
    leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
    for leaf, width in zip(leaves, (None, 4)):
        c = Comparison(leaf, labels, leaf.detach().clone(), labels + 9, None, kind="distance", width=width)
        weighted, total = c.negatives.exponential_hinge(2.0, -0.5, above=True)
        (weighted + total).sum().backward()
    assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-4, atol=1e-4)


def test_soft_triplets_are_counted() -> None:
    x, labels, refs, ref_labels = data()
    counts = []
    for width in (None, 8):
        c = Comparison(x, labels, refs, ref_labels, None, width=width)
        positives = c.positive_list
        _, count = c.negatives.hinge_over_positives(positives, positives.values, soft=True)
        counts.append(count)
    assert counts[0].sum() > 0
    assert_close(*counts)


@pytest.mark.parametrize("width", [None, 8])
def test_positives_asked_for_without_gradient_have_it_later(width: int | None) -> None:
    x, labels, refs, ref_labels = data()
    c = Comparison(x.requires_grad_(), labels, refs, ref_labels, None, width=width)
    with torch.no_grad():
        assert len(c.positive_list.values)
    assert c.positive_list.values.requires_grad


def test_no_anchors_in_tiles() -> None:
    x, labels, refs, ref_labels = data()
    c = Comparison(x[:0].requires_grad_(), labels[:0], refs, ref_labels, None, kind="squared", width=8)
    positives = c.positive_list
    for soft in (False, True):
        value, _ = c.negatives.hinge_over_positives(positives, positives.values, soft=soft)
        assert value.shape == (0,)
    assert c.negatives.argmax_below(torch.zeros(0, 2, dtype=torch.float64)).shape == (0, 2)
    (c.negatives.hinge_sum(0.5, above=False)[0].sum() + c.negatives.logsumexp(1.0).sum()).backward()


def test_thresholds_may_be_tensors_of_one_number() -> None:
    x, labels, refs, ref_labels = data()
    for width, listed in ((None, 0), (8, 2**18), (8, 0)):
        c = Comparison(x, labels, refs, ref_labels, None, width=width, listed=listed)
        for side in (c.positives, c.negatives):
            one = side.hinge_sum(torch.tensor(0.1), above=True)[0] + side.softplus_sum(2.0, torch.tensor(0.1))
            other = side.hinge_sum(0.1, above=True)[0] + side.softplus_sum(2.0, 0.1)
            assert_close(one, other)


class Marked(torch.autograd.Function):
    """Passes on what it is given, and keeps a mark as long as the graph is there."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark = torch.zeros(1)
        Marked.last = weakref.ref(ctx.mark)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize("listed", [0, 2**18])
def test_the_graph_goes_with_the_loss(forms, width, listed) -> None:
    """Without a word from the garbage collector, which on a GPU comes too late."""
    x, labels, refs, ref_labels = data()
    gc.collect()
    gc.disable()
    try:
        for name, (kind, unit, loss) in forms.FORMS.items():
            if name in forms.PARAMETERISED or name in ("lifted", "N-pairs"):
                continue
            leaf = x.clone().requires_grad_()
            c = Comparison(
                Marked.apply(leaf),
                labels,
                refs,
                ref_labels,
                None,
                kind=kind,
                normalize=unit,
                width=width,
                listed=listed,
            )
            value = loss(c)
            value.backward()
            del c, value
            assert Marked.last() is None, name
    finally:
        gc.enable()


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

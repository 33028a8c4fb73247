"""Margin loss against loops over triplets; its boundaries, its draws and its state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.losses import CrossBatchMemory, MarginLoss, distance_weighted_sampling, margin, set_classes


def by_loops(x, labels, refs, ref_labels, own, loss, beta):
    x, refs = x / x.norm(dim=1, keepdim=True), refs / refs.norm(dim=1, keepdim=True)
    x, refs, labels, ref_labels = x.tolist(), refs.tolist(), labels.tolist(), ref_labels.tolist()
    total, pairs, triplets = 0.0, 0, 0
    for i, anchor in enumerate(x):
        for p, n in ((p, n) for p in range(len(refs)) for n in range(len(refs))):
            if own[i] in (p, n) or ref_labels[p] != labels[i] or ref_labels[n] == labels[i]:
                continue
            b = beta[labels[i]]
            below = max(0.0, math.dist(anchor, refs[p]) - b + loss.margin)
            above = max(0.0, b - math.dist(anchor, refs[n]) + loss.margin)
            total += below + above + loss.nu * b
            pairs += (below > 0) + (above > 0)
            triplets += below > 0 or above > 0
    count = pairs if loss.reduction == "pairs" else triplets
    return total / count if count else 0.0


@given(
    st.sampled_from([[1.2] * 4, [0.5] * 4, [0.3, 0.9, 1.2, 1.7]]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(["pairs", "triplets"]),
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.integers(1, 10),
    st.integers(1, 4),
)
@settings(max_examples=120, deadline=None)
def test_all_triplets_equal_the_loops(beta, learn_beta, nu, reduction, seed, n, m, classes):
    loss = MarginLoss(0.2, beta, learn_beta, nu=nu, sampling="all", reduction=reduction).double()
    beta = loss.beta.tolist()  # as float32 has them
    generator = torch.Generator().manual_seed(seed)
    x, refs = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    labels, ref_labels = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    expected = by_loops(x, labels, x, labels, range(n), loss, beta)
    assert loss(x, labels).item() == pytest.approx(expected, abs=1e-9)
    own = torch.randint(-1, m, (n,), generator=generator)
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), loss, beta)
    assert loss(x, labels, refs, ref_labels, own).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sampling", ["all", "distance"])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_gradient_of_boundaries_is_the_derivative(random_batch, sampling, num_classes):
    rows, labels = random_batch(0, n=12)
    labels = labels.unique(return_inverse=True)[1]
    loss = MarginLoss(0.3, 1.1, True, num_classes, nu=0.1, sampling=sampling).double().eval()
    (name,) = dict(loss.named_parameters())
    assert name == "beta"
    assert loss.beta.shape == (() if num_classes is None else (3,))

    def value(x, beta):
        return torch.func.functional_call(loss, {"beta": beta}, (x, labels))

    assert torch.autograd.gradcheck(value, (rows.requires_grad_(), loss.beta))


def test_a_fixed_boundary_is_no_parameter():
    assert not list(MarginLoss().parameters())
    assert list(MarginLoss().state_dict()) == ["draws"]
    assert not list(MarginLoss(beta=[1.0, 1.2]).parameters())
    assert MarginLoss(beta=[1.0, 1.2]).state_dict()["beta"].tolist() == pytest.approx([1.0, 1.2])


def test_boundaries_move_towards_balance(random_batch):
    """dL/dβ = (active negatives - active positives) / count: β settles between positives and negatives."""
    rows, labels = random_batch(1, n=40, d=8, classes=4)
    loss = MarginLoss(beta=0.1, learn_beta=True, sampling="all")
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(rows.float(), labels).backward()
        optimizer.step()
    assert 1.2 < loss.beta.item() < 1.6


def test_each_positive_pair_meets_one_drawn_negative(random_batch):
    """The mean over many draws is the sum weighted by the table, here with every cost above 0."""
    rows, labels = random_batch(2, n=10, d=6)
    loss = MarginLoss(margin=2.5, beta=1.0, cutoff=0.6, upper_cutoff=1.5, reduction="triplets")
    unit = rows / rows.norm(dim=1, keepdim=True)
    distance = torch.cdist(unit, unit)
    table = distance_weighted_sampling(rows, labels, cutoff=0.6, upper_cutoff=1.5)
    positive = (labels[:, None] == labels) & ~torch.eye(10, dtype=torch.bool) & (table.sum(1) > 0)[:, None]
    cost = distance - 1 + 2.5 + (table * (1 - distance + 2.5)).sum(1, keepdim=True)
    expected = cost[positive].mean()
    drawn = torch.stack([loss(rows, labels) for _ in range(1000)])
    assert drawn.std() > 0
    assert drawn.mean().item() == pytest.approx(expected.item(), abs=5 * drawn.std().item() / 1000**0.5)


def test_draws_go_on_after_a_restart(random_batch):
    rows, labels = random_batch(3, n=16, d=16)
    loss, again = MarginLoss(seed=5), MarginLoss(seed=5)
    first = [loss(rows, labels).item() for _ in range(3)]
    state = loss.state_dict()
    later = [loss(rows, labels).item() for _ in range(3)]
    again.load_state_dict({name: value.clone() for name, value in state.items()} | {"draws": torch.tensor(3)})
    assert [again(rows, labels).item() for _ in range(3)] == later
    assert len({*first, *later}) > 1
    assert MarginLoss(seed=6)(rows, labels).item() != first[0]
    loss.eval()
    assert loss(rows, labels).item() == loss(rows, labels).item()
    before = torch.get_rng_state()
    loss.train()(rows, labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_stay_within_the_settings(random_batch):
    """No negative further than beta + margin is drawn, so with a memory of far ones nothing costs."""
    rows, labels = random_batch(4, n=8)
    labels = torch.zeros_like(labels)
    loss = MarginLoss(margin=0.2, beta=0.5)
    assert loss.upper_cutoff == pytest.approx(0.7)
    value = loss(rows, labels, -rows.detach(), torch.ones_like(labels))
    assert value.item() == 0


def test_runs_against_a_memory_with_its_state_inside(random_batch):
    rows, labels = random_batch(5, n=12)
    memory = CrossBatchMemory(MarginLoss(beta=1.0, learn_beta=True), dim=4, size=30)
    for _ in range(4):
        memory(rows.float().requires_grad_(), labels).backward()
    assert int(memory.state_dict()["loss.draws"]) == 8
    assert memory.loss.beta.grad is not None


def test_given_triplets():
    loss = MarginLoss(0.2, [1.0, 0.5])
    near, far = torch.tensor([1.1, 0.6]), torch.tensor([1.1, 0.9])
    # 0.3 + 0.1 with the boundary 1; 0.3 + 0 with 0.5: three costs above 0.
    assert loss.of_distances(near, far, torch.tensor([0, 1])).item() == pytest.approx(0.7 / 3)
    chosen = torch.tensor([False, True])
    assert loss.of_distances(near, far, torch.tensor([0, 1]), chosen).item() == pytest.approx(0.3)
    assert MarginLoss(0.2, 1.0, reduction="triplets").of_distances(near[:1], far[:1]).item() == pytest.approx(
        0.4
    )
    with pytest.raises(InputError, match="`labels` are missing"):
        loss.of_distances(near, far)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MarginLoss(sampling="distances"), "Did you mean 'distance'"),
        (lambda: MarginLoss(reduction="mean"), "one of pairs, triplets"),
        (lambda: MarginLoss(beta=[1.0, 1.2], num_classes=3), "with 2 boundaries"),
        (lambda: MarginLoss(num_classes=0), "above 0"),
        (lambda: MarginLoss(beta=[]), "an empty list"),
        (lambda: MarginLoss(cutoff=0), "between 0 and 2"),
        (lambda: MarginLoss(nu=-1), "at least 0"),
        (
            lambda: MarginLoss(num_classes=2)(torch.randn(3, 2), torch.tensor([0, 1, 2])),
            "run from 0 to 2.*`num_classes`",
        ),
    ],
)
def test_wrong_option_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_repr_tells_the_settings():
    assert "beta=1.2, learn_beta=False" in repr(MarginLoss())
    assert "beta=5 boundaries, learn_beta=True" in repr(MarginLoss(learn_beta=True, num_classes=5))


def test_boundaries_of_classes_may_be_told_later(random_batch):
    rows, labels = random_batch(3)
    labels = (labels + 3) // 7
    late = MarginLoss(beta=1.1, learn_beta=True, per_class=True, sampling="all")
    with pytest.raises(InputError, match="does not know its classes"):
        late(rows, labels)
    set_classes(late, 3, 4)
    early = MarginLoss(beta=1.1, learn_beta=True, num_classes=3, sampling="all")
    assert torch.equal(late.beta, early.beta)
    assert late(rows, labels) == early(rows, labels)
    set_classes(late, 2, 4)
    assert late.beta.shape == (3,)
    with pytest.raises(InputError, match="3 boundaries, the training data 4 classes"):
        set_classes(late, 4, 4)
    shared = MarginLoss(learn_beta=True)
    set_classes(shared, 3, 4)
    assert shared.beta.ndim == 0
    with pytest.raises(InputError, match="needs `learn_beta`"):
        MarginLoss(per_class=True)


def test_a_negative_label_is_no_class_where_labels_are_not_read(random_batch, monkeypatch):
    """As on a GPU, where indexing has to fail."""
    monkeypatch.setattr(margin, "check_class_labels", lambda *_: None)
    rows, labels = random_batch(1)
    with pytest.raises(IndexError):
        MarginLoss(num_classes=4)(rows, -1 - labels)

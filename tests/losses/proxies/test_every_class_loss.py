"""What every loss with class weights must do, whatever its formula."""

from __future__ import annotations

import copy

import pytest
import torch

import deepmetric.losses.proxies.base as base
import deepmetric.losses.proxies.tiles as tiles
from deepmetric.errors import InputError
from deepmetric.losses import (
    ArcFaceLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SphereFaceLoss,
    set_classes,
)


def build(form, classes=5, d=4, seed=0, **more):
    torch.manual_seed(seed)
    loss = form.make(classes, d, **more).double()
    with torch.no_grad():
        loss.proxies.normal_()
    return loss


def gradients(value, *leaves):
    return torch.autograd.grad(value, leaves)


def test_equals_the_loop(form, problem, grouped):
    for seed in range(4):
        x, labels = problem(seed)
        x.requires_grad_()
        loss = build(form, seed=seed)
        value, truth = loss(x, labels), form.truth(x, labels, grouped(loss))
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-12)
        for ours, wanted in zip(gradients(value, x, loss.proxies), gradients(truth, x, loss.proxies)):
            torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-10)


def test_tiles_of_classes_equal_the_loop(form, problem, grouped, monkeypatch):
    monkeypatch.setattr(tiles, "KEPT", 0)
    monkeypatch.setattr(tiles, "_width", lambda job, x, count: 4)
    x, labels = problem(5, n=9, classes=11)
    x.requires_grad_()
    loss = build(form, classes=11)
    value, truth = loss(x, labels), form.truth(x, labels, grouped(loss))
    torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-12)
    for ours, wanted in zip(gradients(value, x, loss.proxies), gradients(truth, x, loss.proxies)):
        torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-10)


def test_gradient_is_the_derivative(form, problem):
    x, labels = problem(1)
    loss = build(form, seed=1).eval()
    proxies = loss.proxies.detach().clone().requires_grad_()

    def value(x, w):
        return torch.func.functional_call(loss, {"proxies": w}, (x, labels))

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), proxies), atol=1e-4)


def test_backward_twice_gives_the_same(form, problem):
    x, labels = problem(2)
    x.requires_grad_()
    loss = build(form)
    value = loss(x, labels)
    first = torch.autograd.grad(value, (x, loss.proxies), retain_graph=True)
    second = torch.autograd.grad(value, (x, loss.proxies))
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b)


def test_one_item_and_one_class(form, problem):
    x, labels = problem(3, n=1)
    x.requires_grad_()
    for loss, y in ((build(form), labels), (build(form, classes=1), torch.zeros(1, dtype=torch.long))):
        value = loss(x, y)
        assert value.isfinite()
        for gradient in gradients(value, x, loss.proxies):
            assert gradient.isfinite().all()


def test_empty_batch_costs_nothing_of_the_items(form, problem):
    x, labels = problem(4)
    x.requires_grad_()
    loss = build(form)
    value = loss(x[:0], labels[:0])
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(form, problem, dtype):
    x, labels = problem(6)
    half = x.to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    loss = build(form).float().eval()
    value, wanted = loss(half, labels), loss(single, labels)
    assert value.dtype == torch.float32
    assert value.item() == wanted.item()
    (gradient,), (wanted_gradient,) = gradients(value, half), gradients(wanted, single)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, wanted_gradient.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(single, labels).item() == wanted.item()
    loss.to(dtype)
    value = loss(single, labels)
    assert value.dtype == torch.float32
    value.backward()
    assert loss.proxies.grad.dtype == dtype


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_embedding_that_is_no_number_makes_the_loss_nan(form, problem, bad):
    x, labels = problem(6)
    x[3, 1] = bad
    assert build(form)(x, labels).isnan()


def test_an_infinite_logit_does_not_cost_nothing():
    """The proxies' gradient is no number then, and a guard of the loss must see it."""
    loss = NormalizedSoftmaxLoss(2, 2, normalize=False)
    loss.proxies.data = torch.tensor([[1.0, 0.1], [-1.0, 0.2]])
    assert loss(torch.tensor([[torch.inf, 1.0]]), torch.tensor([0])).isnan()


@pytest.mark.parametrize("label", [-1, -5])
def test_a_label_of_no_class_makes_the_loss_nan_where_labels_are_not_read(form, problem, monkeypatch, label):
    """As on a GPU. It must not count from the last class."""
    monkeypatch.setattr(base, "check_class_labels", lambda *_: None)
    x, labels = problem(6)
    labels[2] = label
    assert build(form)(x, labels).isnan()
    assert build(form, negative_fraction=0.7)(x, labels).isnan()


def test_backward_within_autocast_is_computed_in_float32(form, problem, monkeypatch):
    monkeypatch.setattr(tiles, "KEPT", 0)
    monkeypatch.setattr(tiles, "_width", lambda job, x, count: 4)
    x, labels = problem(5, n=9, classes=11)
    x = x.float().requires_grad_()
    loss = build(form, classes=11).float()
    wanted = gradients(loss(x, labels), x, loss.proxies)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(loss(x, labels), x, loss.proxies)
    for ours, gradient in zip(found, wanted):
        torch.testing.assert_close(ours, gradient, rtol=2e-3, atol=2e-3)


def test_duplicates_and_items_on_their_proxies_give_finite_gradients(form):
    loss = build(form).float()
    x = torch.cat([loss.proxies.detach()[:: loss.centers], -loss.proxies.detach()[:: loss.centers]])
    x = torch.cat([x, x, torch.zeros(1, 4)]).requires_grad_()
    labels = torch.cat([torch.arange(5).repeat(4), torch.tensor([0])])
    value = loss(x, labels)
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()
    assert loss.proxies.grad.isfinite().all()
    assert x.grad[:-1].abs().max() < 1e4


def test_order_and_width_of_labels_do_not_matter(form, problem):
    x, labels = problem(7, n=12)
    loss = build(form).eval()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(x[order], labels[order]), loss(x, labels))
    torch.testing.assert_close(loss(x, labels.to(torch.int16)), loss(x, labels))


def test_proxies_are_told_their_number_later(form, problem):
    torch.manual_seed(0)
    early = form.make(5, 4)
    torch.manual_seed(0)
    late = form.make(None, None)
    assert not list(late.parameters())
    set_classes(torch.nn.ModuleList([late]), 5, 4)
    assert torch.equal(early.proxies, late.proxies)
    set_classes(late, 3, 4)  # enough of them: left as they are
    assert torch.equal(early.proxies, late.proxies)
    with pytest.raises(InputError, match=r"5 classes of width 4.*6 classes"):
        set_classes(late, 6, 4)


def test_state_goes_on_as_if_unbroken(form, problem):
    """Saved in the middle and loaded into a loss that was built anew."""
    x, labels = problem(8)
    first = build(form, negative_fraction=0.7)
    optimizer = torch.optim.Adam(first.parameters(), lr=0.1)
    second, values = None, []
    for step in range(4):
        optimizer.zero_grad()
        value = first(x, labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
        if step == 1:
            second = build(form, negative_fraction=0.7, seed=3)
            second.load_state_dict(first.state_dict())
            again = torch.optim.Adam(second.parameters(), lr=0.1)
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in (2, 3):
        again.zero_grad()
        value = second(x, labels)
        value.backward()
        again.step()
        assert value.item() == values[step]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda loss, x: loss(x, torch.tensor([0, 1, 5])), "run from 0 to 5, but this .* has 5 classes"),
        (lambda loss, x: loss(x, torch.tensor([0, -1, 4])), "run from -1 to 4"),
        (lambda loss, x: loss(x[:, :3], torch.tensor([0, 1, 2])), "width 3, the proxies of .* width 4"),
        (lambda loss, x: loss(x, torch.tensor([0.0, 1, 2])), "must be integers"),
        (lambda loss, x: loss(x, torch.tensor([0, 1])), "one entry a row"),
        (lambda loss, x: type(loss)()(x, torch.tensor([0, 1, 2])), "does not know its classes"),
        (lambda loss, x: type(loss)(5), "`num_classes` alone"),
        (lambda loss, x: type(loss)(0, 4), "at least 1; got 0 and 4"),
        (lambda loss, x: type(loss)(5, 4, negative_fraction=0), "`negative_fraction`.*above 0"),
    ],
)
def test_wrong_input_is_named(form, call, message):
    with pytest.raises(InputError, match=message):
        call(form.make(5, 4), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ArcFaceLoss(5, 4, margin=28.6), "radians.*give 0.4992"),
        (lambda: ArcFaceLoss(5, 4, scale=0), "above 0"),
        (lambda: ArcFaceLoss(5, 4, label_smoothing=1.0), "below 1"),
        (lambda: SphereFaceLoss(5, 4, margin=0), "whole number from 1"),
        (lambda: ProxyNCALoss(5, 4, form="papr"), "Did you mean 'paper'"),
        (lambda: ProxyNCALoss(5, 4, label_smoothing=0.1), "form 'probability'"),
        (lambda: ProxyAnchorLoss(5, 4, alpha=0), "above 0"),
        (lambda: SoftTripleLoss(5, 4, centers_per_class=0), "at least 1"),
        (lambda: SoftTripleLoss(5, 4, gamma=0), "above 0"),
    ],
)
def test_wrong_option_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_repr_tells_the_settings(form):
    assert "num_classes=5, dim=4" in repr(form.make(5, 4))
    assert "negative_fraction=0.5" in repr(form.make(5, 4, negative_fraction=0.5))

"""The regularisers of BIER's groups against loops, and the signs of the reversed gradient by finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from deepmetric.errors import InputError
from deepmetric.losses import ActivationDiversity, AdversarialDiversity


@pytest.fixture
def layer() -> tuple[Tensor, Tensor]:
    """Features [9, 5] and a weight [7, 5], float64."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(9, 5, generator=generator, dtype=torch.float64),
        torch.randn(7, 5, generator=generator, dtype=torch.float64),
    )


def test_activation_equals_the_loop(layer):
    features, weight = layer
    outputs = features @ weight.T
    wanted = 0.0
    groups = [(0, 2), (2, 4), (4, 7)]
    for a, (low, high) in enumerate(groups):
        for other_low, other_high in groups[a + 1 :]:
            products = [
                (outputs[n, k] * outputs[n, l]) ** 2
                for n in range(9)
                for k in range(low, high)
                for l in range(other_low, other_high)  # noqa: E741
            ]
            wanted += sum(products) / len(products)
    for low, high in groups:
        wanted += 3.0 * sum((weight[k] @ weight[k] - 1) ** 2 for k in range(low, high)) / (high - low)
    torch.testing.assert_close(ActivationDiversity([2, 2, 3], 3.0)(features, weight), wanted)


@pytest.mark.parametrize("make", [ActivationDiversity, lambda groups: AdversarialDiversity(groups, 4)])
def test_features_are_constants(layer, make):
    features, weight = layer
    features.requires_grad_()
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(
        make([3, 4]).double()(features, weight), features, allow_unused=True, retain_graph=True
    )
    assert gradient is None


def test_activation_has_the_right_gradient(layer):
    features, weight = layer
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: ActivationDiversity([3, 4], 2.0)(features, w), (weight,))


def similarity(regressors, features: Tensor, weight: Tensor, groups: list[int]) -> Tensor:
    """Σ over pairs of groups, written out."""
    parts = linear(features, weight).split(groups, 1)
    pairs = [(i, j) for i in range(len(groups)) for j in range(i + 1, len(groups))]
    return sum(
        (parts[i] * regressor(parts[j])).square().mean() for (i, j), regressor in zip(pairs, regressors)
    )


def difference(function, at: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient of ``function()`` in ``at`` by central differences."""
    found = torch.zeros_like(at)
    with torch.no_grad():
        for place in range(at.numel()):
            entry = at.view(-1)[place : place + 1]
            entry += step
            above = function()
            entry -= 2 * step
            below = function()
            entry += step
            found.view(-1)[place] = (above - below) / (2 * step)
    return found


def test_regressors_raise_the_similarity_and_the_layer_lowers_it(layer):
    features, weight = layer
    groups = [2, 2, 3]
    torch.manual_seed(0)
    diversity = AdversarialDiversity(groups, hidden=6, norm_weight=0.0).double()
    weight.requires_grad_()
    value = diversity(features, weight)

    def now() -> Tensor:
        return similarity(diversity.regressors, features, weight, groups)

    torch.testing.assert_close(value, -now())
    value.backward()
    # Descent on the value: the regressors go up the similarity, the layer, through both of its ends, down.
    torch.testing.assert_close(weight.grad, difference(now, weight.data), rtol=1e-5, atol=1e-8)
    for parameter in diversity.parameters():
        torch.testing.assert_close(parameter.grad, -difference(now, parameter.data), rtol=1e-5, atol=1e-8)


def test_gradient_is_reversed_at_both_ends(layer):
    """Each end alone: the other group's outputs held constant."""
    features, weight = layer
    torch.manual_seed(0)
    diversity = AdversarialDiversity([3, 4], hidden=6, norm_weight=0.0).double()
    weight.requires_grad_()
    diversity(features, weight).backward()
    (regressor,) = diversity.regressors
    assert weight.grad is not None
    target_rows, source_rows = weight.data[:3], weight.data[3:]
    still_target, still_source = (linear(features, rows.clone()) for rows in (target_rows, source_rows))

    def by_target() -> Tensor:
        return (linear(features, target_rows) * regressor(still_source)).square().mean()

    def by_source() -> Tensor:
        return (still_target * regressor(linear(features, source_rows))).square().mean()

    at_target, at_source = difference(by_target, target_rows), difference(by_source, source_rows)
    torch.testing.assert_close(weight.grad, torch.cat([at_target, at_source]), rtol=1e-5, atol=1e-8)
    assert at_target.abs().min() > 0
    assert at_source.abs().max() > 1e-4


def test_norms_of_all_layers_are_held_without_reversal(layer):
    features, weight = layer
    torch.manual_seed(0)
    diversity = AdversarialDiversity([3, 4], hidden=6, norm_weight=2.0).double()
    weight.requires_grad_()
    bare = AdversarialDiversity([3, 4], hidden=6, norm_weight=0.0).double()
    bare.load_state_dict(diversity.state_dict())
    (regressor,) = diversity.regressors
    with torch.no_grad():
        regressor[0].bias.fill_(1.0)  # ‖b‖² = 6
        bare.regressors[0][0].bias.fill_(1.0)
    penalty = diversity(features, weight) - bare(features, weight)
    rows = [weight[:3], weight[3:], regressor[0].weight, regressor[2].weight]
    wanted = 2 * (sum(sum((w @ w - 1) ** 2 for w in row) / len(row) for row in rows) + 5.0)
    torch.testing.assert_close(penalty, wanted)
    (gradient,) = torch.autograd.grad(penalty, weight)
    own = lambda: sum(((w.square().sum(1) - 1) ** 2).mean() for w in weight.data.split([3, 4])) * 2  # noqa: E731
    torch.testing.assert_close(gradient, difference(own, weight.data), rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_is_named(layer):
    features, weight = layer
    with pytest.raises(InputError, match="7 units, the groups 2, 4 together 6"):
        ActivationDiversity([2, 4])(features, weight)
    with pytest.raises(InputError, match=r"features \(9, 5\) and weight \(7, 4\)"):
        AdversarialDiversity([3, 4])(features, weight[:, :4])
    with pytest.raises(InputError, match="`hidden`"):
        AdversarialDiversity([3, 4], hidden=0)


@pytest.mark.parametrize("make", [ActivationDiversity, AdversarialDiversity])
def test_a_layer_in_half_precision_is_computed_in_float32(make, layer):
    features, weight = (part.bfloat16() for part in layer)
    diversity = make([3, 4])
    weight.requires_grad_()
    value = diversity(features, weight)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, diversity(features.float(), weight.detach().float()))
    assert torch.autograd.grad(value, weight)[0].dtype == torch.bfloat16

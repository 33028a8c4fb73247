"""BIER's boosting against loops and its closed form."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from deepmetric.errors import InputError
from deepmetric.losses import AdversarialDiversity, BIERLoss, BinomialDevianceLoss, CrossBatchMemory


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain(rows: Tensor, labels: Tensor, groups: list[int], cost: float, boosting: str) -> Tensor:
    """The loss pair by pair, as the paper's algorithm goes."""
    n, total = len(rows), rows.new_zeros(())
    cosines = [normalize(part, dim=1) @ normalize(part, dim=1).T for part in rows.split(groups, 1)]
    same = [(i, j) for i in range(n) for j in range(n) if i != j and labels[i] == labels[j]]
    other = [(i, j) for i in range(n) for j in range(n) if labels[i] != labels[j]]
    for pairs, y in ((same, 1.0), (other, -cost)):
        for pair in pairs:
            weight, activation = 1.0, 0.5
            for m, cosine in enumerate(cosines, start=1):
                margin = 2 * (cosine[pair] - 0.5) * y
                total = total + weight * torch.log1p(torch.exp(-margin)) / len(pairs) / len(groups)
                if boosting == "shrinkage":
                    activation += 0.06 * margin.item()
                    weight = sigmoid(-activation) * (1 if y > 0 else 2)
                else:
                    activation = (1 - 2 / (m + 1)) * activation + 2 / (m + 1) * margin.item()
                    weight = sigmoid(-activation)
    return total


@pytest.mark.parametrize("boosting", ["shrinkage", "eta"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop_in_value_and_gradient(random_batch, boosting, seed):
    """The gradient too: the loop's weights are numbers, so nothing may flow through ours."""
    rows, labels = random_batch(seed, n=11, d=9)
    rows.requires_grad_()
    wanted = plain(rows, labels, [2, 3, 4], 5.0, boosting)
    found = BIERLoss([2, 3, 4], cost=5.0, boosting=boosting)(rows, labels)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    (gradient,), (wanted_gradient,) = torch.autograd.grad(found, rows), torch.autograd.grad(wanted, rows)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-8, atol=1e-12)


def test_eta_weights_are_the_slope_at_the_shares_of_the_closed_form():
    """With η_m = 2/(m + 1) the ensemble of M learners is Σ 2m/(M(M + 1)) s_m, the weight -ℓ' there over alpha |y|."""
    cosines = torch.rand(4, 50, dtype=torch.float64) * 2 - 1
    positive = torch.arange(50) % 3 == 0
    loss = BIERLoss([1, 1, 1, 1], cost=3.0, boosting="eta")
    weights = loss.boosting_weights(cosines, positive)
    y = torch.where(positive, 1.0, -3.0).double()
    assert (weights[0] == 1).all()
    for learners in (1, 2, 3):
        shares = torch.tensor([2 * m / (learners * (learners + 1)) for m in range(1, learners + 1)]).double()
        ensemble = (shares[:, None] * cosines[:learners]).sum(0).requires_grad_()
        deviance = torch.log1p(torch.exp(-2 * (ensemble - 0.5) * y)).sum()
        (slope,) = torch.autograd.grad(deviance, ensemble)
        torch.testing.assert_close(weights[learners], -slope / (2 * y), rtol=1e-6, atol=1e-9)


def test_shrinkage_weights_in_closed_form():
    cosines = torch.tensor([[0.9, -0.3], [0.1, 0.8], [0.0, 0.0]], dtype=torch.float64)
    weights = BIERLoss([1, 1, 1]).boosting_weights(cosines, torch.tensor([True, False]))
    first = [sigmoid(-(0.5 + 0.06 * 2 * 0.4)), 2 * sigmoid(-(0.5 + 0.06 * 2 * 0.8 * 25))]
    second = [sigmoid(-(0.5 + 0.12 * (0.4 - 0.4))), 2 * sigmoid(-(0.5 + 0.12 * 25 * (0.8 - 0.3)))]
    torch.testing.assert_close(weights, torch.tensor([[1, 1], first, second], dtype=torch.float64))


def test_later_learners_weigh_what_the_earlier_ones_got_wrong():
    right, wrong = torch.tensor([[0.9], [0.9]]), torch.tensor([[0.1], [0.1]])
    for boosting in ("shrinkage", "eta"):
        loss = BIERLoss([1, 1], boosting=boosting)
        positive, negative = torch.tensor([True]), torch.tensor([False])
        assert loss.boosting_weights(wrong, positive)[1] > loss.boosting_weights(right, positive)[1]
        assert loss.boosting_weights(right, negative)[1] > loss.boosting_weights(wrong, negative)[1]


def test_one_group_is_binomial_deviance(random_batch):
    rows, labels = random_batch(4)
    wanted = BinomialDevianceLoss(alpha=2.0, beta=50.0, reduction="pairs")(rows, labels)
    torch.testing.assert_close(BIERLoss([4])(rows, labels), wanted)


# ---- the regulariser, seen through the loss ----


class Net(nn.Module):
    """A trunk, and an embedding layer with a bias, which the regulariser must not see."""

    def __init__(self, units: int = 6) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 7)
        self.linear = nn.Linear(7, units)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.trunk(x).relu())


def regularised(random_batch, **settings):
    torch.manual_seed(0)
    net = Net()
    rows, labels = random_batch(5, n=12, d=5)
    loss = BIERLoss([2, 4], cost=5.0, norm_weight=3.0, hidden=8, **settings)
    loss.attach(net.linear)
    return net, loss, rows.float(), labels


@pytest.mark.parametrize("diversity", ["activation", "adversarial"])
def test_regulariser_reaches_the_layer_and_not_the_trunk(random_batch, diversity):
    net, loss, rows, labels = regularised(random_batch, diversity=diversity, diversity_weight=10.0)
    plain_loss = BIERLoss([2, 4], cost=5.0)
    embeddings = net(rows)
    extra = loss(embeddings, labels) - plain_loss(embeddings, labels)
    features = net.trunk(rows).relu()
    torch.testing.assert_close(
        extra, 10.0 * loss.diversity(features, net.linear.weight), rtol=1e-4, atol=1e-4
    )
    loss(net(rows), labels).backward()
    with_it = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    plain_loss(net(rows), labels).backward()
    without = {name: parameter.grad for name, parameter in net.named_parameters()}
    for name in ("trunk.weight", "trunk.bias", "linear.bias"):
        torch.testing.assert_close(with_it[name], without[name], rtol=1e-5, atol=1e-7)
    assert (with_it["linear.weight"] - without["linear.weight"]).abs().max() > 1e-3


def test_attached_model_is_pickled_and_its_copy_keeps_features_of_its_own(random_batch, tmp_path):
    net, loss, rows, labels = regularised(random_batch, diversity="activation")
    loss.attach(net.linear)  # again: nothing changes
    embeddings = net(rows)
    value = loss(embeddings, labels)
    average = copy.deepcopy(net)
    average(2 * rows)
    assert loss(embeddings, labels) == value
    torch.save(net, tmp_path / "net.pt")
    again = torch.load(tmp_path / "net.pt", weights_only=False)
    torch.testing.assert_close(again(rows), embeddings)


def test_regressors_are_parameters_of_the_loss_and_the_layer_is_not(random_batch):
    _, loss, *_ = regularised(random_batch, diversity="adversarial")
    names = {name for name, _ in loss.named_parameters()}
    assert names == {f"diversity.regressors.0.{i}.{what}" for i in (0, 2) for what in ("weight", "bias")}
    assert set(loss.state_dict()) == names


def test_regulariser_is_for_training_and_once_with_a_memory(random_batch):
    net, loss, rows, labels = regularised(random_batch, diversity="activation", diversity_weight=10.0)
    embeddings = net(rows)
    with_it = loss(embeddings, labels)
    plain_loss = BIERLoss([2, 4], cost=5.0)
    memory, plain_memory = (CrossBatchMemory(one, dim=6, size=30) for one in (loss, plain_loss))
    extra = memory(embeddings, labels) - plain_memory(embeddings, labels)
    torch.testing.assert_close(extra, with_it - plain_loss(embeddings, labels), rtol=1e-4, atol=1e-4)
    assert loss.eval()(embeddings, labels) == plain_loss(embeddings, labels)


class Joined:
    """Stands for several processes: what they gather is known."""

    def __init__(self, *wholes: Tensor) -> None:
        self.wholes = list(wholes)

    def gather(self, rows: Tensor) -> Tensor:
        return self.wholes.pop(0)


@pytest.mark.parametrize("diversity", ["activation", "adversarial"])
@pytest.mark.parametrize("rows_here", [0, 5])
def test_regulariser_over_processes_is_that_of_the_joined_batch(random_batch, diversity, rows_here):
    """Of parts of any length; on each process the gradient of the whole."""
    net, loss, rows, labels = regularised(random_batch, diversity=diversity, diversity_weight=10.0)
    wanted = loss(net(rows), labels)
    (gradient,) = torch.autograd.grad(wanted, net.linear.weight)
    embeddings, features = net(rows), net.trunk(rows).relu().detach()
    part = net(rows[:rows_here])
    loss.processes = Joined(embeddings, labels, features)
    value = loss(part, labels[:rows_here])
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, net.linear.weight)[0], gradient)


@pytest.mark.parametrize("diversity", ["activation", "adversarial"])
def test_no_rows_have_no_overlap(random_batch, diversity):
    net, loss, rows, labels = regularised(random_batch, diversity=diversity)
    value = loss(net(rows[:0]), labels[:0])
    assert value.isfinite()
    assert torch.autograd.grad(value, net.linear.weight)[0].isfinite().all()


def test_layer_that_was_not_attached_or_does_not_fit_is_named(random_batch):
    rows, labels = random_batch(6)
    with pytest.raises(InputError, match=r"loss.attach\(model.head.linear\).*deepmetric.training.BIER"):
        BIERLoss([2, 2], diversity="activation")(rows, labels)
    with pytest.raises(InputError, match="has 6 units, the groups of BIERLoss 2, 2 together 4"):
        BIERLoss([2, 2], diversity="activation").attach(Net().linear)
    with pytest.raises(InputError, match=r"last torch.nn.Linear; got Net. Hint: `model.head.linear`"):
        BIERLoss([2, 4]).attach(Net())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": []}, "`groups` of BIERLoss"),
        ({"boosting": "etta"}, "Did you mean 'eta'"),
        ({"diversity": "adverserial"}, "Did you mean 'adversarial'"),
        ({"cost": 0.0}, "`cost` of BIERLoss must be above 0"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        BIERLoss(**arguments)


def test_default_groups_are_the_published_ones():
    assert BIERLoss().groups == AdversarialDiversity().groups == [96, 160, 256]

"""Medoids against all sets of them, mutual information against scikit-learn, the loss against its two scores."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses import ClusteringLoss
from deepmetric.losses.clustering import greedy_medoids, refine_medoids
from deepmetric.losses.clustering.loss import oracle_medoids
from deepmetric.losses.clustering.medoids import nearest
from deepmetric.losses.clustering.mutual_information import Classes, nmi


def batch(seed: int, n: int = 9, classes: int = 3) -> tuple[Tensor, Tensor, Classes]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64))
    labels = torch.randint(classes, (n,), generator=generator)
    of = Classes.from_labels(labels, torch.float64, "geometric")
    return torch.cdist(rows, rows), labels, of


def score_by_loop(distances: Tensor, labels: Tensor, medoids: list[int], gamma: float) -> float:
    served, cluster = 0.0, []
    for i in range(len(distances)):
        best = min(medoids, key=lambda m: float(distances[i, m]))
        cluster.append(i if i in medoids else best)
        served += float(distances[i, best])
    alike = len(set(labels.tolist())) == len(set(cluster)) == 1
    agreement = 1.0 if alike else normalized_mutual_info_score(labels, cluster, average_method="geometric")
    return -served + gamma * (1 - agreement)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 50.0])
def test_score_is_that_of_the_loop_and_greedy_is_near_the_best(gamma: float) -> None:
    for seed in range(3):
        distances, labels, classes = batch(seed)
        k = classes.number
        scores = {
            chosen: score_by_loop(distances, labels, list(chosen), gamma)
            for chosen in combinations(range(9), k)
        }
        for chosen, wanted in scores.items():
            ours = nearest(distances, torch.tensor(chosen)).augmented(distances, classes, gamma)
            assert ours.item() == pytest.approx(wanted, abs=1e-9)
        best, greedy = max(scores.values()), greedy_medoids(distances, classes, gamma)
        found = refine_medoids(distances, classes, gamma, greedy, 5)
        value = greedy.augmented(distances, classes, gamma).item()
        assert value == pytest.approx(scores[tuple(sorted(greedy.medoids.tolist()))])
        refined = found.augmented(distances, classes, gamma).item()
        assert value - 1e-9 <= refined <= best + 1e-9
        if not gamma:
            # 1 - 1/e of the gain over nobody being served nearer than the largest distance.
            nobody = -len(distances) * distances.max().item()
            assert value - nobody >= (1 - 1 / torch.e) * (best - nobody)


def test_greedy_takes_the_best_candidate_at_every_step() -> None:
    for seed in range(5):
        distances, labels, classes = batch(seed, n=10, classes=4)
        chosen: list[int] = []
        for medoid in greedy_medoids(distances, classes, 3.0).medoids.tolist():
            values = {
                j: score_by_loop(distances, labels, [*chosen, j], 3.0) for j in range(10) if j not in chosen
            }
            assert values[medoid] == pytest.approx(max(values.values()), abs=1e-9)
            chosen.append(medoid)


def test_refinement_never_lowers_the_score() -> None:
    for seed in range(8):
        distances, _, classes = batch(seed, n=16, classes=4)
        generator = torch.Generator().manual_seed(seed)
        found = nearest(distances, torch.randperm(16, generator=generator)[: classes.number])
        score = found.augmented(distances, classes, 4.0)
        for _ in range(3):
            found = refine_medoids(distances, classes, 4.0, found, 1)
            after = found.augmented(distances, classes, 4.0)
            assert after >= score - 1e-9
            score = after


@pytest.mark.parametrize("normalizer", ["geometric", "arithmetic"])
def test_mutual_information_is_that_of_scikit_learn(normalizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for n, classes, clusters in [(30, 4, 5), (30, 4, 1), (30, 1, 4), (7, 7, 7), (12, 3, 12), (5, 1, 1)]:
        labels = torch.randint(classes, (n,), generator=generator)
        cluster = torch.randint(clusters, (n,), generator=generator)
        ours = nmi(Classes.from_labels(labels, torch.float64, normalizer), cluster).item()
        wanted = normalized_mutual_info_score(labels, cluster, average_method=normalizer)
        assert ours == pytest.approx(wanted, abs=1e-9), (n, classes, clusters)


def test_oracle_is_the_best_of_each_class() -> None:
    distances, labels, classes = batch(3, n=15, classes=4)
    for c, medoid in enumerate(oracle_medoids(distances, classes).tolist()):
        members = (classes.of == c).nonzero()[:, 0].tolist()
        cost = {j: sum(float(distances[i, j]) for i in members) for j in members}
        assert cost[medoid] == pytest.approx(min(cost.values()))
    assert len(labels) == 15


@pytest.mark.parametrize("distance", ["distance", "squared_distance"])
def test_loss_and_gradient_are_of_the_two_scores(distance, random_batch) -> None:
    rows, labels = random_batch(2, n=12)
    rows.requires_grad_()
    loss = ClusteringLoss(5.0, distance=distance)
    unit = torch.nn.functional.normalize(rows)
    apart = (unit[:, None] - unit[None, :]).square().sum(2)
    if distance == "distance":
        apart = torch.where(apart > 1e-12, apart.clamp_min(1e-12).sqrt(), 0)
    fixed = apart.detach()
    classes = Classes.from_labels(labels, torch.float64, "geometric")
    found = refine_medoids(fixed, classes, 5.0, greedy_medoids(fixed, classes, 5.0), 5)
    right = oracle_medoids(fixed, classes)[classes.of]
    item = torch.arange(12)
    wanted = -apart[item, found.medoids[found.cluster]].sum() + apart[item, right].sum()
    value = loss(rows, labels)
    assert value.item() > 0
    gained = 5.0 * (1 - nmi(classes, found.cluster))
    torch.testing.assert_close(value, wanted + gained)
    torch.testing.assert_close(
        torch.autograd.grad(value, rows)[0], torch.autograd.grad(wanted, rows)[0], rtol=1e-7, atol=1e-9
    )
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (rows,))


def test_awkward_batches_give_finite_numbers(awkward_batch) -> None:
    rows, labels = awkward_batch
    rows = rows.float().requires_grad_()
    value = ClusteringLoss()(rows, labels)
    value.backward()
    assert value.isfinite()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_embeddings_that_are_no_numbers_make_the_loss_nan(random_batch, bad, normalize) -> None:
    rows, labels = random_batch(4)
    loss = ClusteringLoss(normalize=normalize)
    for count in (1, 9, 10):
        broken = rows.clone()
        broken[:count] = bad
        assert loss(broken, labels).isnan()


def test_nothing_wrong_to_choose_costs_nothing(random_batch) -> None:
    rows, _ = random_batch(1)
    rows.requires_grad_()
    for labels in (torch.zeros(10, dtype=torch.int64), torch.arange(10)):
        value = ClusteringLoss()(rows, labels)
        assert value.item() == pytest.approx(0, abs=1e-9)
        assert torch.autograd.grad(value, rows)[0].abs().sum() == 0


def test_separated_classes_cost_nothing_without_margin() -> None:
    rows = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 0)
    labels = torch.arange(3).repeat_interleave(4)
    assert ClusteringLoss(0.0)(rows, labels).item() == 0
    assert ClusteringLoss(0.0)(rows, labels.roll(1)).item() > 0


def test_order_of_items_does_not_matter(random_batch) -> None:
    rows, labels = random_batch(6, n=15, classes=4)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    loss = ClusteringLoss()
    torch.testing.assert_close(loss(rows[order], labels[order]), loss(rows, labels))


def test_references_are_refused(random_batch) -> None:
    rows, labels = random_batch(0)
    with pytest.raises(InputError, match="one batch"):
        ClusteringLoss()(rows, labels, rows, labels)
    with pytest.raises(InputError, match="`gamma`"):
        ClusteringLoss(-1.0)
    with pytest.raises(InputError, match="'squared_distance'"):
        ClusteringLoss(distance="squared_distances")  # type: ignore[arg-type]

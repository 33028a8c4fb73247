import pytest
import torch

from deepmetric.errors import InputError
from deepmetric.losses import ClassTree, HierarchicalTripletLoss

# Classes 10, 20, 30, 40: the first two merge at level 1, then the last two at 2, all at 3.
TREE = ClassTree(
    torch.tensor([10, 20, 30, 40]),
    torch.tensor([0.2, 0.9, 0.4, 3.0]),
    torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 0, 0]]),
    torch.tensor([0.5, 1.0, 1.5, 2.0]),
)
LEVEL = {(10, 20): 1, (30, 40): 2}


def margin(y, other, beta=0.1, clip=False):
    level = LEVEL.get((min(y, other), max(y, other)), 3)
    alpha = beta + float(TREE.thresholds[level]) - float(TREE.spread[TREE.labels.tolist().index(y)])
    return max(alpha, 0.0) if clip else alpha


def by_loops(x, labels, refs, ref_labels, own, clip=False, nonzero=False):
    x, refs = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, refs))
    total, count, active = x.sum() * 0, 0, 0
    for a in range(len(x)):
        for p in range(len(refs)):
            for n in range(len(refs)):
                if own[a] in (p, n) or labels[a] != ref_labels[p] or labels[a] == ref_labels[n]:
                    continue
                near, far = (x[a] - refs[p]).square().sum(), (x[a] - refs[n]).square().sum()
                cost = near - far + margin(int(labels[a]), int(ref_labels[n]), clip=clip)
                count += 1
                if cost > 0:
                    total, active = total + cost, active + 1
    return total / (2 * max(active if nonzero else count, 1))


def rows(seed, n):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([10, 20, 30, 40])[torch.randint(4, (n,), generator=generator)]
    return torch.randn(n, 4, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "nonzero"])
def test_equals_the_sum_over_triplets(clip, reduction, monkeypatch):
    monkeypatch.setattr("deepmetric.losses.hierarchical_triplet.BLOCK", 50)  # several blocks
    loss = HierarchicalTripletLoss(clip_margin=clip, reduction=reduction)
    loss.tree = TREE
    x, labels = rows(0, 12)
    x.requires_grad_()
    expected = by_loops(x, labels, x, labels, list(range(12)), clip, reduction == "nonzero")
    found = loss(x, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # thresholds are float32
    for one, other in zip(torch.autograd.grad(found, x), torch.autograd.grad(expected, x)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    refs, ref_labels = rows(1, 9)
    own = torch.tensor([3, -1, 5, -1, -1, 0, -1, -1, -1, 8, -1, -1])
    expected = by_loops(x, labels, refs, ref_labels, own.tolist(), clip, reduction == "nonzero")
    torch.testing.assert_close(loss(x, labels, refs, ref_labels, own), expected, rtol=1e-6, atol=1e-7)


def test_gradient_is_the_derivative():
    loss = HierarchicalTripletLoss()
    loss.tree = TREE
    x, labels = rows(2, 10)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (x.requires_grad_(),))


def test_margins_are_larger_for_classes_that_merge_late_and_smaller_for_loose_ones():
    everyone = torch.arange(4)
    margins = TREE.margins(everyone, everyone, 0.1)
    assert TREE.merge_levels(everyone, everyone).tolist() == [
        [0, 1, 3, 3],
        [1, 0, 3, 3],
        [3, 3, 0, 2],
        [3, 3, 2, 0],
    ]
    assert margins[0, 1] < margins[0, 2] == margins[0, 3]
    assert margins[1, 2] < margins[0, 2]  # the same level, a looser anchor
    assert margins[0, 1].item() == pytest.approx(0.1 + 1.0 - 0.2)
    assert margins[3, 2].item() == pytest.approx(0.1 + 1.5 - 3.0)  # negative


def test_batches_without_triplets_cost_nothing():
    loss = HierarchicalTripletLoss()
    loss.tree = TREE
    for labels in ([10, 10, 10], [10, 20, 30], []):
        x = torch.randn(len(labels), 4, requires_grad=True)
        value = loss(x, torch.tensor(labels, dtype=torch.int64))
        value.backward()
        assert value == 0
        assert (x.grad == 0).all()


def test_without_a_tree_or_with_an_unknown_class_it_says_so():
    loss = HierarchicalTripletLoss()
    x = torch.randn(2, 4)
    with pytest.raises(InputError, match="no tree yet"):
        loss(x, torch.tensor([10, 20]))
    loss.tree = TREE
    with pytest.raises(InputError, match="no class with label 25"):
        loss(x, torch.tensor([10, 25]))

"""What every pair loss owes its user; a new loss is one more row of LOSSES."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from deepmetric.errors import InputError
from deepmetric.losses import (
    AngularLoss,
    BIERLoss,
    BinomialDevianceLoss,
    CircleLoss,
    ContrastiveLoss,
    FastAPLoss,
    GeneralPairWeighting,
    GlobalOrthogonalLoss,
    HardMiningLoss,
    HDCLoss,
    HistogramLoss,
    IntraClassVarianceLoss,
    IntraPairVarianceLoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NCALoss,
    NPairsLoss,
    NTXentLoss,
    PairLoss,
    PNPLoss,
    RankedListLoss,
    RecallAtKLoss,
    ROADMAPLoss,
    SmoothAPLoss,
    SupAPLoss,
    SupConLoss,
    TripletLoss,
    TupletMarginLoss,
)
from deepmetric.losses.mining import multi_similarity


class Exponential(GeneralPairWeighting):
    def positive_weight(self, similarity: Tensor) -> Tensor:
        return torch.exp(-2 * similarity)

    def negative_weight(self, similarity: Tensor) -> Tensor:
        return torch.exp(3 * similarity)


LOSSES = {
    "contrastive cosine": ContrastiveLoss(negative_margin=0.1),
    "contrastive cosine_hinge": ContrastiveLoss("cosine_hinge", 0.9, 0.1, reduction="nonzero"),
    "contrastive distance": ContrastiveLoss("distance", 0.1, 1.2, reduction="mean"),
    "contrastive squared_distance": ContrastiveLoss("squared_distance", negative_margin=2.0),
    "contrastive hadsell": ContrastiveLoss("hadsell", negative_margin=1.5),
    "triplet all": TripletLoss(0.5, "all"),
    "triplet semihard": TripletLoss(0.5, "semihard", reduction="mean"),
    "triplet semihard_band": TripletLoss(0.5, "semihard_band", "distance"),
    "triplet hard": TripletLoss(0.5, "hard", "distance", soft_margin=True),
    "triplet hard push": TripletLoss(0.5, "hard", "distance", singletons="push"),
    "triplet hard_band": TripletLoss(0.5, "hard_band", "cosine"),
    "triplet easy_positive": TripletLoss(0.5, "easy_positive"),
    "triplet swap": TripletLoss(0.5, "all", swap=True),
    "triplet unnormalised": TripletLoss(0.5, "all", "distance", normalize=False),
    "multi_similarity": MultiSimilarityLoss(epsilon=0.3),
    "multi_similarity unmined": MultiSimilarityLoss(epsilon=None),
    "multi_similarity kept": MultiSimilarityLoss(beta=40.0, epsilon=0.3, reduction="kept"),
    "lifted original": LiftedStructureLoss(),
    "lifted original, unit rows": LiftedStructureLoss(distance="squared_distance", normalize=True),
    "lifted generalized": LiftedStructureLoss("generalized", margin=2.0),
    "lifted generalized kept": LiftedStructureLoss("generalized", normalize=True, reduction="kept"),
    "lifted modified": LiftedStructureLoss("modified"),
    "lifted modified, mined": LiftedStructureLoss("modified", epsilon=0.3),
    "binomial": BinomialDevianceLoss(),
    "binomial mined": BinomialDevianceLoss(epsilon=0.3, scaled=True),
    "binomial pairs": BinomialDevianceLoss(beta=10.0, reduction="pairs"),
    "hard mining": HardMiningLoss(0.3),
    "hdc": HDCLoss([2, 2], [1.0, 0.4], margin=3.0),
    "hdc each nonzero": HDCLoss(None, [1.0, 0.5], [1.0, 2.0], 2.0, 10.0, "each", "nonzero"),
    "bier": BIERLoss([2, 2], cost=5.0),
    "bier eta": BIERLoss([2, 2], cost=3.0, boosting="eta"),
    "margin all": MarginLoss(sampling="all"),
    "margin all triplets": MarginLoss(beta=1.0, sampling="all", reduction="triplets"),
    "nca": NCALoss(),
    "nca expected": NCALoss(4.0, "expected", "cosine"),
    "nca nearest": NCALoss(4.0, neighbours=3),
    "nca expected nearest": NCALoss(4.0, "expected", neighbours=4, normalize=False),
    "npairs": NPairsLoss("all"),
    "npairs of unit rows": NPairsLoss("all", normalize=True),
    "ntxent": NTXentLoss(0.5),
    "supcon": SupConLoss(0.5),
    "supcon anchors": SupConLoss(0.5, base_temperature=0.2, reduction="anchors"),
    "circle": CircleLoss(0.25, gamma=8.0),
    "circle batch": CircleLoss(0.25, gamma=8.0, over="batch"),
    "tuplet margin": TupletMarginLoss(scale=8.0),
    "intra-pair variance": IntraPairVarianceLoss(),
    "angular": AngularLoss(40.0),
    "ranked list": RankedListLoss(Tn=3.0, Tp=2.0),
    "general pair weighting": Exponential(),
    "intra-class variance": IntraClassVarianceLoss(),
    "global orthogonal": GlobalOrthogonalLoss(),
    "fast_ap": FastAPLoss(),
    "smooth_ap": SmoothAPLoss(0.1),
    "sup_ap": SupAPLoss(0.1, delta=0.2, offset=None),
    "roadmap": ROADMAPLoss({"temperature": 0.1}),
    "recall at k": RecallAtKLoss([1, 2], [1.0, 0.5], rank_temperature=0.1),
    "histogram": HistogramLoss(20),
    "histogram in triplets": HistogramLoss(20, "in_triplets"),
    "pnp Dq": PNPLoss("Dq", 0.1),
    "pnp Ib": PNPLoss("Ib", 0.1),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> PairLoss:
    return LOSSES[request.param]


def test_gradient_is_the_derivative(loss, random_batch):
    if isinstance(loss, (BIERLoss, CircleLoss, GeneralPairWeighting)):
        pytest.skip("its weights are constants")
    rows, labels = random_batch(0)
    refs, ref_labels = random_batch(1, n=12)
    own = torch.tensor([3, -1, 5, -1, -1, 0, -1, -1, -1, 11])
    rows.requires_grad_()
    refs.requires_grad_()
    assert loss(rows, labels) > 0
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (rows,))
    assert torch.autograd.gradcheck(lambda x, r: loss(x, labels, r, ref_labels, own), (rows, refs))


def test_batch_is_its_own_reference(loss, random_batch):
    """Without references the loss is that against the batch itself, own copies named."""
    rows, labels = random_batch(2, n=14, copies=3)
    rows.requires_grad_()
    refs = rows.detach().clone().requires_grad_()
    inside = loss(rows, labels)
    against = loss(rows, labels, refs, labels, torch.arange(14))
    torch.testing.assert_close(inside, against, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(inside, rows)
    of_rows, of_refs = torch.autograd.grad(against, (rows, refs))
    torch.testing.assert_close(gradient, of_rows + of_refs, rtol=1e-9, atol=1e-12)


def test_references_are_taken_by_their_values(loss, random_batch):
    """The batch's own tensor as its references is like any other of these numbers: own copies are named or count."""
    rows, labels = random_batch(2, n=8)
    copies = rows.clone()
    torch.testing.assert_close(loss(rows, labels, rows, labels), loss(rows, labels, copies, labels))
    own = torch.tensor([0, -1, 2, 3, -1, 5, 6, 7])
    torch.testing.assert_close(loss(rows, labels, rows, labels, own), loss(rows, labels, copies, labels, own))


def test_own_copy_is_as_if_absent(loss, random_batch):
    """One anchor at a time: with its own copy among the references and named, the loss is that without it."""
    rows, labels = random_batch(4, copies=2)
    refs, ref_labels = random_batch(5, n=8)
    for i in range(10):
        row, label = rows[i : i + 1], labels[i : i + 1]
        with_own = torch.cat([refs[:5], row, refs[5:]]), torch.cat([ref_labels[:5], label, ref_labels[5:]])
        without = loss(row, label, refs, ref_labels)
        torch.testing.assert_close(loss(row, label, *with_own, torch.tensor([5])), without)


def test_order_of_items_does_not_matter(loss, random_batch):
    rows, labels = random_batch(6, n=15, classes=4)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(rows[order], labels[order]), loss(rows, labels))


def test_names_of_classes_do_not_matter(loss, random_batch):
    rows, labels = random_batch(7)
    torch.testing.assert_close(loss(rows, 1000 - labels * 13), loss(rows, labels))
    torch.testing.assert_close(loss(rows, labels.to(torch.int16)), loss(rows, labels))


def test_two_classes_may_be_booleans(loss, random_batch):
    rows, labels = random_batch(7)
    two = labels > labels.min()
    refs, ref_labels = random_batch(8, n=8)
    others = ref_labels > ref_labels.min()
    torch.testing.assert_close(loss(rows, two), loss(rows, two.long()))
    torch.testing.assert_close(loss(rows, two, refs, others), loss(rows, two.long(), refs, others.long()))


def test_rotation_of_the_space_does_not_matter(loss, random_batch):
    rows, labels = random_batch(8, copies=2)
    rotation, _ = torch.linalg.qr(random_batch(9, n=4)[0])
    if isinstance(loss, (BIERLoss, HDCLoss)):  # two parts, each with a space of its own
        rotation = torch.block_diag(*(torch.linalg.qr(random_batch(9, n=2, d=2)[0])[0] for _ in range(2)))
    torch.testing.assert_close(loss(rows @ rotation, labels), loss(rows, labels))


def test_length_of_rows_does_not_matter_where_they_are_normalised(loss, random_batch):
    rows, labels = random_batch(10)
    scaled = loss(rows * torch.linspace(0.1, 3, 10)[:, None], labels)
    if getattr(loss, "normalize", True):
        torch.testing.assert_close(scaled, loss(rows, labels))
    else:
        assert not torch.isclose(scaled, loss(rows, labels))


def test_awkward_batches_give_finite_numbers(loss, awkward_batch):
    rows, labels = awkward_batch
    rows = rows.float().requires_grad_()
    value = loss(rows, labels)
    assert value.ndim == 0
    assert value.isfinite()
    value.backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
    assert rows.grad.abs().sum() < 1e4


def test_no_pair_costs_nothing(loss, random_batch):
    """An empty reference set or an empty batch: 0, attached, with zero gradient."""
    rows, labels = random_batch(11)
    rows.requires_grad_()
    for value in (
        loss(rows, labels, rows.detach()[:0], labels[:0]),
        loss(rows[:0], labels[:0]),
        loss(rows[:1], labels[:1]),
    ):
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, rows)
        assert gradient.abs().sum() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_embedding_that_is_no_number_makes_the_loss_nan(loss, random_batch, bad):
    """Not a number like any other, after which a guard lets a step through that ruins the weights."""
    rows, labels = random_batch(11)
    refs, ref_labels = random_batch(8, n=8)
    one = rows.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(bad, dtype=rows.dtype))
    for broken in (one, torch.full_like(rows, bad)):
        assert loss(broken, labels).isnan()
        assert loss(broken, labels, refs, ref_labels).isnan()


@pytest.mark.parametrize("distance", [1e-3, 1e-5])
def test_near_copies_take_bounded_gradients(loss, random_batch, distance):
    """Of the same and of another class, in a batch too large for one matrix."""
    rows, labels = random_batch(20, n=260, d=4, classes=60)
    near = [0, 1, 2, 3], [4, 5, 6, 7]
    labels[near[1]] = labels[near[0]]
    labels[near[1][:2]] += 1
    rows[near[1]] = rows[near[0]] + distance * random_batch(21, n=4, d=4)[0]
    single, double = rows.float().requires_grad_(), rows.clone().requires_grad_()
    for leaf in (single, double):
        loss(leaf, labels).backward()
    assert single.grad is not None
    assert double.grad is not None
    assert single.grad.isfinite().all()
    assert single.grad.abs().max() < 10 * double.grad.abs().max() + 1


def test_no_anchor_beside_references_costs_nothing(loss, random_batch):
    """What `enqueue_mask` leaves of a batch of keys alone."""
    rows, labels = random_batch(11)
    rows.requires_grad_()
    value = loss(rows[:0], labels[:0], rows.detach(), labels)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, rows)
    assert not gradient.any()


def test_labels_of_anchors_and_references_may_be_of_different_types(loss, random_batch):
    rows, labels = random_batch(7)
    refs, ref_labels = random_batch(8, n=8)
    wanted = loss(rows, labels, refs, ref_labels)
    for far in (0, 300):  # 300 and 44 are the same in 8 bits
        value = loss(rows, labels.to(torch.int32) + far, refs, ref_labels.to(torch.int16) + far)
        torch.testing.assert_close(value, wanted)
    mixed = loss(rows, labels + 300, refs, (ref_labels + 44).to(torch.uint8))
    torch.testing.assert_close(mixed, loss(rows, labels + 300, refs, ref_labels + 44))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, random_batch, dtype):
    rows, labels = random_batch(12)
    half = rows.to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    value, wanted = loss(half, labels), loss(single, labels)
    assert value.dtype == torch.float32
    assert value.item() == wanted.item()
    (gradient,), (wanted_gradient,) = torch.autograd.grad(value, half), torch.autograd.grad(wanted, single)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, wanted_gradient.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(single, labels).item() == wanted.item()
        assert (
            loss(single, labels, half.detach(), labels).item()
            == loss(single, labels, half.detach().float(), labels).item()
        )


def test_references_may_be_constants_of_another_precision(loss, random_batch):
    rows, labels = random_batch(13)
    refs = rows.to(torch.bfloat16)
    assert loss(rows.float(), labels, refs, labels).dtype == torch.float32
    assert loss(rows, labels, refs, labels).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[0], y), r"`embeddings` must be \[N, d\].*\(4,\)"),
        (lambda x, y: (x.long(), y), "`embeddings` must be floating point; got torch.int64"),
        (lambda x, y: (x, y[:-1]), r"`labels` must have one entry a row: expected shape \(10,\).*got \(9,\)"),
        (lambda x, y: (x, torch.eye(10, 3)[y % 10]), "argmax"),
        (lambda x, y: (x, y.double()), "`labels` must be integers; got torch.float64"),
        (lambda x, y: (x, y, x), "without `ref_labels`"),
        (lambda x, y: (x, y, None, y), "`ref_labels` was given without `ref_emb`"),
        (lambda x, y: (x, y, None, None, y), "`self_index` was given without `ref_emb`"),
        (lambda x, y: (x, y, x[:, :3], y), "width 3, `embeddings` of width 4"),
        (lambda x, y: (x, y, x, y[:4]), "`ref_labels` must have one entry a row"),
        (lambda x, y: (x, y, x, y, torch.arange(9)), "`self_index` must be 10 integers"),
        (lambda x, y: (x, y, x, y, torch.arange(1, 11)), "between -1 .* and 9"),
        (
            lambda x, y: (x, y, x, y, y == 0),
            "`self_index` must be 10 integers, one an anchor; got torch.bool",
        ),
        (lambda x, y: (x.numpy(), y), "`embeddings` must be a tensor; got ndarray"),
        (lambda x, y: (x, y.tolist()), r"`labels` must be a tensor; got list.*torch.as_tensor\(labels\)"),
        (lambda x, y: (x, None), "`labels` must be a tensor; got NoneType"),
        (
            lambda x, y: (x, y, multi_similarity(x, y)),
            "`ref_emb` must be a tensor.*indices of a miner have no place here",
        ),
        (lambda x, y: (x, y, x.to("meta"), y.to("meta")), "`ref_emb` is on meta"),
    ],
)
def test_wrong_input_is_named(random_batch, change, message):
    with pytest.raises(InputError, match=message):
        ContrastiveLoss()(*change(*random_batch(14)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ContrastiveLoss("cosin"), "`form` of ContrastiveLoss is 'cosin'.*Did you mean 'cosine'"),
        (lambda: ContrastiveLoss(reduction="sum"), "one of anchors, nonzero, mean"),
        (lambda: TripletLoss(mining="semi-hard"), "Did you mean 'semihard'"),
        (lambda: TripletLoss(singletons="drop"), "`singletons` of TripletLoss"),
        (lambda: MultiSimilarityLoss(alpha=0), "above 0"),
        (lambda: MultiSimilarityLoss(reduction="mean"), "one of anchors, kept"),
    ],
)
def test_wrong_option_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_repr_tells_the_settings():
    assert "form='distance', positive_margin=0.0, negative_margin=1.0" in repr(ContrastiveLoss("distance"))
    assert "mining='semihard'" in repr(TripletLoss())
    assert "alpha=2.0, beta=50.0, base=0.5, epsilon=0.1" in repr(MultiSimilarityLoss())


def test_losses_load_torch_alone():
    code = (
        "import sys, deepmetric.losses\n"
        "heavy = {'torchvision', 'timm', 'faiss', 'sklearn', 'pandas', 'pyarrow', 'PIL', 'jsonargparse'}\n"
        "parts = {f'deepmetric.{p}' for p in ('data', 'models', 'training', 'evaluation', 'search')}\n"
        "print(sorted((heavy | parts) & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_zero_row_takes_a_bounded_gradient():
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    ContrastiveLoss(negative_margin=-2.0)(rows, torch.tensor([0, 0, 1])).backward()
    gradient: Tensor | None = rows.grad
    assert gradient is not None
    assert gradient.abs().max() < 10

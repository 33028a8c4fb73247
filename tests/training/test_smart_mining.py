import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.evaluation import embed_dataset
from deepmetric.training import Run, Trainer
from deepmetric.training.parse import parse_recipe
from deepmetric.training.smart_mining import furthest_of_class, others_by_nearness, windows

RECIPE = """
loss: {class_path: deepmetric.losses.TripletGlobalLoss}
sampler: {class_path: deepmetric.data.TripletSampler, init_args: {triplets: 10}}
procedure:
  class_path: deepmetric.training.SmartMining
  init_args: {neighbours: 30, window: 4, refresh_every: 5, index_every: 10, offset: 0.0}
memory: null
"""


def unit(seed, n, d=4):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)  # faiss is imported in the first
@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 50), st.integers(0, 2**16))
def test_candidates_are_the_nearest_of_other_classes(n, classes, neighbours, seed):
    x, labels = unit(seed, n), np.random.default_rng(seed).integers(0, classes, n)
    found = others_by_nearness(x, labels, neighbours)
    similarity = x @ x.T
    for i, row in enumerate(found):
        near = np.argsort(-similarity[i], kind="stable")[: neighbours + 1]
        expected = near[labels[near] != labels[i]]
        np.testing.assert_allclose(similarity[i][row[row >= 0]], similarity[i][expected], atol=1e-6)
        assert (labels[row[row >= 0]] != labels[i]).all()
        assert (row[len(expected) :] == -1).all()


def test_an_approximate_index_finds_nearly_the_same():
    x, labels = unit(0, 2000, 16), np.random.default_rng(0).integers(0, 100, 2000)
    exact, graph = (others_by_nearness(x, labels, 20, kind)[:, :15] for kind in ("flat", "hnsw"))
    common = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), graph.tolist())]
    assert np.mean(common) > 0.9 * 15


def test_a_window_slides_from_the_hardest_to_past_the_easiest():
    candidates = np.array([[5, 4, 3, 2, 1, 0], [9, 8, 7, -1, -1, -1], [6, -1, -1, -1, -1, -1], [-1] * 6])
    assert windows(candidates, 2, 0.0).tolist() == [[5, 4], [9, 8], [6, -1], [-1, -1]]
    assert windows(candidates, 2, 0.67).tolist() == [[1, 0], [7, -1], [-1, -1], [-1, -1]]
    assert windows(candidates, 2, 0.84)[0].tolist() == [0, -1]
    assert windows(candidates, 2, 1.0).tolist() == [[-1, -1]] * 4
    assert windows(candidates, 2, 0.5)[0].tolist() == [2, 1]
    assert windows(candidates[:, :0], 2, 0.5).tolist() == [[-1, -1]] * 4
    assert windows(candidates, 9, 0.34)[0].tolist() == [3, 2, 1, 0, -1, -1, -1, -1, -1]


def test_furthest_of_class():
    x, labels = unit(1, 30), np.random.default_rng(1).integers(0, 6, 30)
    labels[0] = 99  # alone
    found = furthest_of_class(x, labels, 3)
    for i in range(30):
        others = [j for j in range(30) if labels[j] == labels[i] and j != i]
        expected = sorted(others, key=lambda j: x[i] @ x[j])[:3]
        assert found[i].tolist() == expected + [-1] * (3 - len(expected))


def test_furthest_of_a_large_class_in_parts(monkeypatch):
    x, labels = unit(2, 1500), np.zeros(1500, dtype=int)
    whole = furthest_of_class(x, labels, 3)
    monkeypatch.setattr("deepmetric.training.smart_mining.BLOCK", 2**16)
    tracemalloc.start()
    parts = furthest_of_class(x, labels, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(parts, whole)
    assert peak < 1500 * 1500  # bytes: less than a byte a pair


@pytest.fixture
def build(recipe_file, tmp_path):
    system = tmp_path / "system.yaml"
    system.write_text(RECIPE)

    def make(*arguments):
        recipe = parse_recipe(["--config", str(recipe_file), "--config", str(system), *arguments])[0]
        (tmp_path / "run").mkdir(exist_ok=True)
        return Trainer(recipe, Run(tmp_path / "run"))

    return make


def test_what_is_dealt_is_of_another_class_and_near(build):
    trainer = build()
    procedure, labels = trainer.procedure, trainer.train_data.labels
    procedure.refresh()
    assert all(part.training for part in trainer.model.modules())  # as it was found
    similarity = (lambda x: x @ x.T)(embed_dataset(trainer.model, trainer.train_data))
    rank = np.where(labels[:, None] == labels, -np.inf, similarity)
    rank = (-rank).argsort(axis=1).argsort(axis=1)  # 0: the nearest item of another class
    mined, at_random = [], []
    for batch in trainer.sampler:
        a, p, n = np.reshape(batch, (-1, 3)).T
        assert (labels[a] == labels[p]).all()
        assert (labels[a] != labels[n]).all()
        for anchor, negative in zip(a, n):
            listed = (procedure.candidates[anchor] >= 0).any()
            (mined if listed else at_random).append(rank[anchor, negative])
    assert max(mined) < 4
    assert len(mined) > 5 * len(at_random)


def test_without_candidates_negatives_are_random_ones(build):
    trainer = build("--procedure.neighbours", "1")
    trainer.procedure.refresh()
    labels = trainer.train_data.labels
    without = (trainer.procedure.candidates < 0).all(axis=1)
    assert without.any()
    for batch in trainer.sampler:
        a, _, n = np.reshape(batch, (-1, 3)).T
        assert (labels[a] != labels[n]).all()


def test_at_offset_1_negatives_are_of_all_other_classes(build):
    trainer = build("--procedure.offset", "1.0")
    assert trainer.procedure.neighbours < len(trainer.train_data)
    trainer.procedure.refresh()
    labels, candidates = trainer.train_data.labels, trainer.procedure.candidates
    triplets = np.concatenate([np.reshape(batch, (-1, 3)) for batch in trainer.sampler])
    assert (labels[triplets[:, 0]] != labels[triplets[:, 2]]).all()
    listed = (candidates[triplets[:, 0]] == triplets[:, 2:]).any(axis=1)
    assert not listed.all()


def test_training_moves_the_offset_and_renews_the_index(build):
    trainer = build("--training.steps", "25", "--procedure.target", "0.05", "--procedure.smoothing", "0")
    built = []
    refresh = trainer.procedure.refresh

    def watched():
        before = trainer.procedure.candidates
        refresh()
        if trainer.procedure.candidates is not before:
            built.append(trainer.step)

    trainer.procedure.refresh = watched
    trainer.train()
    assert built == [0, 10, 20]
    records = [r for r in trainer.run.metrics() if "mining_offset" in r]
    offsets = [r["mining_offset"] for r in records]
    assert offsets[:5] == [0.0] * 5  # it moves between stretches alone
    assert offsets[5] == pytest.approx(0.5 * (records[4]["active_triplets"] - 0.05))
    assert max(offsets) > 0.2


def test_other_parts_are_refused(build):
    with pytest.raises(InputError, match="needs the loss TripletGlobalLoss"):
        build("--loss=deepmetric.losses.TripletLoss")
    with pytest.raises(InputError, match="needs the sampler"):
        build("--sampler=deepmetric.data.ShuffledSampler", "--sampler.batch_size=30")
    with pytest.raises(InputError, match="`window`"):
        build("--procedure.window", "0")

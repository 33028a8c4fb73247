"""The index: what it finds, what it keeps, what it refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmetric.errors import InputError
from deepmetric.search import Index


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def names(n: int) -> list[str]:
    return [f"class/{i}.png" for i in range(n)]


def test_flat_is_exact_cosine(clustered) -> None:
    x, labels = clustered
    queries = np.random.default_rng(1).normal(size=(20, 32))
    index = Index.build(x * np.arange(1, 5001)[:, None], names(5000), labels)  # lengths must not matter
    found = index.search(7 * queries, k=13)
    s = unit(queries) @ unit(x.astype(float)).T
    order = np.argsort(-s, axis=1)[:, :13]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(s, order, 1), atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels[order])
    assert found.ids[3, 5] == f"class/{order[3, 5]}.png"
    assert (index.kind, index.recall, index.dim, len(index)) == ("flat", 1.0, 32, 5000)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_kinds_find_what_flat_finds(kind, clustered, tmp_path: Path) -> None:
    x, labels = clustered
    queries = x + 0.6 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    exact = Index.build(x, names(5000), labels).search(queries[:500], k=10)
    index = Index.build(x, names(5000), labels, kind=kind)
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    assert 0.95 <= again.recall <= 1
    for some in (index, again):  # how much is searched is kept in the file
        found = some.search(queries[:500], k=10)
        recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.indices, exact.indices)])
        assert recall >= 0.9
        assert (np.diff(found.scores, axis=1) <= 0).all()


def test_ivf_leaves_most_lists_out(clustered) -> None:
    x, labels = clustered
    engine = Index.build(x, names(5000), labels, kind="ivf")._engine
    assert 4 <= engine.nprobe < engine.nlist / 2


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_k_beyond_the_index_gives_everything(kind, clustered) -> None:
    x, labels = clustered
    index = Index.build(x[:1200], names(1200), labels[:1200], kind=kind)
    for k in (1200, 10_000):
        found = index.search(x[:3], k=k)
        assert (np.sort(found.indices, axis=1) == np.arange(1200)).all()


def test_copies_do_not_hide_from_a_graph() -> None:
    x = np.repeat(np.random.default_rng(0).normal(size=(4, 8)), 100, axis=0)
    index = Index.build(x, names(400), np.arange(400) // 100, kind="hnsw")
    found = index.search(x[[0, 399]], k=150)
    assert (found.indices >= 0).all()
    assert (found.labels[:, :10] == [[0], [3]]).all()


def test_ivf_of_few_vectors() -> None:
    with pytest.raises(InputError, match=r"1,000 vectors or more, there are 999. Use kind flat"):
        Index.build(np.eye(999), names(999), np.arange(999), kind="ivf")
    Index.build(np.eye(1000), names(1000), np.arange(1000), kind="ivf")


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_single_item(kind) -> None:
    index = Index.build(np.ones((1, 4)), ["a"], ["x"], kind=kind)
    found = index.search(np.array([0, 0, 0, 2.0]), k=5)
    assert found.ids.tolist() == [["a"]]
    assert found.scores[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("labels", [[3, 2**60, -1], ["x", "ü", "x"]])
def test_saved_and_loaded(labels, small_model, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 8))
    index = Index.build(x, ["a", "b/ж.png", "c"], labels, small_model)
    index.save(tmp_path / "deep" / "index")
    shutil.move(tmp_path / "deep" / "index", tmp_path / "moved")  # self-contained
    again = Index.load(tmp_path / "moved")
    assert again.ids == ["a", "b/ж.png", "c"]
    assert again.labels.tolist() == labels
    for mine, its in zip(index.search(x, 2), again.search(x, 2)):
        np.testing.assert_array_equal(mine, its)
    images = [np.random.default_rng(i).integers(0, 255, (20, 20, 3), np.uint8) for i in range(2)]
    np.testing.assert_allclose(again.model.embed(images), small_model.embed(images), atol=1e-6)
    assert again.search_images(images, k=1).scores.shape == (2, 1)
    again.save(tmp_path / "copy")  # a loaded index has all it needs to be saved
    assert Index.load(tmp_path / "copy").search_images(images, k=3).ids.shape == (2, 3)


def test_search_images_finds_the_image(image_folder: Path, small_model, tmp_path: Path) -> None:
    paths = sorted(image_folder.glob("*/*.png"))[:40]
    index = Index.build(small_model.embed(paths), [p.name for p in paths], ["x"] * 40, small_model)
    found = index.search_images(paths[7:9], k=3)
    assert found.indices[:, 0].tolist() == [7, 8]
    assert index.search_images(paths[7], k=3).ids.shape == (1, 3)


def test_replacing_leaves_only_the_new_files(tmp_path: Path, small_model) -> None:
    folder = tmp_path / "index"
    Index.build(np.eye(8), names(8), range(8), small_model).save(folder)
    first = {entry.name for entry in folder.iterdir()}
    opened = Index.load(folder)
    Index.build(np.eye(8)[:5], names(5), range(5)).save(folder)
    assert {entry.name for entry in folder.iterdir()} & first == {"manifest.json"}
    assert len(list(folder.iterdir())) == 3
    assert len(Index.load(folder)) == 5
    assert len(opened.search(np.eye(8), k=8).ids) == 8  # what was opened before still searches
    with pytest.raises(InputError, match=r"replaced since it was opened"):
        opened.search_images(np.zeros((20, 20, 3), np.uint8))


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    index = Index.build(np.eye(2), names(2), range(2))
    with pytest.raises(InputError, match=r"holds other things \(photo.jpg\) and no index"):
        index.save(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        index.save(tmp_path / "photo.jpg")
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize(
    "name", ["photo-0a1b2c3d4e5f.jpg", "run-0a1b2c3d4e5f", "model-202401011200", "items-0a1b2c3d4e5f.csv"]
)
def test_files_named_much_like_ours_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "weights").write_bytes(b"precious")
    with pytest.raises(InputError, match=f"holds other things .{name}"):
        Index.build(np.eye(2), names(2), range(2)).save(tmp_path)
    assert (tmp_path / name / "weights").exists()


@pytest.mark.parametrize("text", ['{"name": "a web page"}', "[]", "no JSON"])
def test_a_manifest_of_another_program_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"holds other things \(manifest.json\)"):
        Index.build(np.eye(2), names(2), range(2)).save(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == text


def test_missing_and_damaged(tmp_path: Path) -> None:
    Index.build(np.eye(2), names(2), range(2)).save(tmp_path / "birds")
    with pytest.raises(InputError, match=r"no such folder. Did you mean 'birds'"):
        Index.load(tmp_path / "bird")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no finished index"):
        Index.load(tmp_path / "empty")
    for damage, message in (
        (lambda file: os.truncate(file, 10), r"damaged: .* has 10 bytes"),
        (lambda file: file.write_bytes(b"x" * file.stat().st_size), r"damaged"),
        (lambda file: file.unlink(), r"is missing"),
    ):
        for pattern in ("vectors-*", "items-*"):
            shutil.copytree(tmp_path / "birds", tmp_path / "copy")
            damage(next((tmp_path / "copy").glob(pattern)))
            with pytest.raises(InputError, match=message):
                Index.load(tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")
    manifest = tmp_path / "birds" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match=r"format 2"):
        Index.load(tmp_path / "birds")
    manifest.write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"is not the manifest of an index: 'files'"):
        Index.load(tmp_path / "birds")
    manifest.write_text("{")
    with pytest.raises(InputError, match=r"is not the manifest"):
        Index.load(tmp_path / "birds")


X = np.eye(3)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Index.build(X, ["a"], [0, 1, 2]), r"`ids` .* expected 3, got 1"),
        (lambda: Index.build(X, names(3), [0, 1]), r"`labels` .* expected shape \(3,\)"),
        (lambda: Index.build(X * np.nan, names(3), [0, 1, 2]), r"row 0 \(item 'class/0.png'\)"),
        (lambda: Index.build(X, names(3), [0, 1, 2], kind="flatt"), r"Did you mean 'flat'"),
        (lambda: Index.build(X[:0], [], []), r"got shape \(0, 3\)"),
        (lambda: Index.build(X, names(3), [0, 1, 2]).search(X[:, :2]), r"2 wide, the index is 3 wide"),
        (lambda: Index.build(X, names(3), [0, 1, 2]).search(X / 0), r"NaN or infinite"),
        (lambda: Index.build(X, names(3), [0, 1, 2]).search(X, k=0), r"k is 0"),
        (lambda: Index.build(X, names(3), [0, 1, 2]).search_images(["a.png"]), r"holds no model"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_wrong_input(act, message) -> None:
    with pytest.raises(InputError, match=message):
        act()


def test_a_model_of_another_width(small_model) -> None:
    with pytest.raises(InputError, match=r"3 wide and the model makes 8"):
        Index.build(X, names(3), [0, 1, 2], small_model)


def test_torch_tensors(clustered) -> None:
    x, labels = clustered
    index = Index.build(torch.tensor(x[:50]), names(50), torch.tensor(labels[:50]))
    np.testing.assert_array_equal(
        index.search(torch.tensor(x[:5]), 3).indices, index.search(x[:5], 3).indices
    )
    queries = torch.tensor(x[:5], requires_grad=True)
    for some in (queries, queries.bfloat16()):
        assert (index.search(some, np.int64(3)).indices[:, 0] == np.arange(5)).all()


def test_a_relative_folder(small_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a colon, which is no URI; and the model is opened later, from elsewhere."""
    monkeypatch.chdir(tmp_path)
    Index.build(np.eye(8), names(8), range(8), small_model).save("run:3/index")
    index = Index.load("run:3/index")
    monkeypatch.chdir("/")
    assert index.search_images(np.zeros((20, 20, 3), np.uint8)).ids.shape == (1, 8)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for ids, labels in ((["caf\udce9.png"], [0]), (["a"], ["caf\udce9"])):
        with pytest.raises(InputError, match=r"'caf\\udce9.*' is not valid UTF-8"):
            Index.build(np.ones((1, 2)), ids, labels).save(tmp_path / "index")
    assert not (tmp_path / "index").exists()

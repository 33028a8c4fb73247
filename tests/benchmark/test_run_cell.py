"""What workers share, and what a plan must not ask for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import yaml

from deepmetric.benchmark.plan import read_plan
from deepmetric.benchmark.run_cell import check_same, keep_test_items
from deepmetric.benchmark.search_space import as_recipe, distributions
from deepmetric.benchmark.tune import tune
from deepmetric.data import Dataset
from deepmetric.errors import InputError


def items(number: int) -> Dataset:
    labels = np.arange(number) % 5
    return Dataset([f"item {i}" for i in range(number)], labels, list("abcde"), np.full(number, "test"))


def test_workers_that_end_together_keep_one_list_of_test_items(tmp_path: Path):
    data, workers = items(20_000), 4
    for k in range(5):
        barrier = Barrier(workers)

        def keep(_: int, out: Path = tmp_path / str(k), barrier: Barrier = barrier) -> str:
            barrier.wait()
            return keep_test_items(data, "items", out)

        with ThreadPoolExecutor(workers) as pool:
            assert len(set(pool.map(keep, range(workers)))) == 1
    with pytest.raises(InputError, match="are others than when this benchmark began"):
        keep_test_items(items(10), "items", tmp_path / "0")


def test_a_corrected_figure_of_a_paper_is_no_other_setting(tmp_path: Path):
    begun = {
        "loss": {"class_path": "L", "init_args": {"margin": 0.1}},
        "published": [{"scores": {"recall@1": 65.7}}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(begun))
    (tmp_path / "result.json").write_text("{}")
    check_same(tmp_path, begun | {"published": []})
    with pytest.raises(InputError, match=r"begun with other settings: loss\.margin was 0\.1, now 0\.2"):
        check_same(tmp_path, begun | {"loss": {"class_path": "L", "init_args": {"margin": 0.2}}})


def test_other_weights_are_another_setting_and_a_moved_file_is_none(tmp_path: Path):
    for name in ("a/imagenet.pth", "b/imagenet.pth", "b/other.pth", "images", "pictures"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def recipe(weights: str | None, root: str) -> dict:
        path = None if weights is None else str(tmp_path / weights)
        return {"model": {"weights": path}, "data": {"data": {"root": str(tmp_path / root)}}}

    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe("a/imagenet.pth", "images")))
    check_same(tmp_path, recipe("b/imagenet.pth", "pictures"))
    with pytest.raises(InputError, match=r"model\.weights was .*imagenet\.pth', now .*other\.pth"):
        check_same(tmp_path, recipe("b/other.pth", "images"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(None, "images")))
    with pytest.raises(InputError, match=r"model\.weights was None, now .*imagenet\.pth"):
        check_same(tmp_path, recipe("a/imagenet.pth", "images"))


def test_other_queries_are_other_test_items(tmp_path: Path):
    data = items(10)
    data.is_query, data.is_gallery = np.arange(10) < 5, np.arange(10) >= 5
    keep_test_items(data, "items", tmp_path)
    keep_test_items(data, "items", tmp_path)
    data.is_query, data.is_gallery = data.is_gallery, data.is_query
    with pytest.raises(InputError, match="are others than when this benchmark began"):
        keep_test_items(data, "items", tmp_path)


def test_a_plan_that_is_no_utf8(plan_file: Path):
    plan_file.write_bytes(plan_file.read_bytes() + "# caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="is no YAML: 'utf-8' codec can't decode"):
        read_plan(plan_file)


def test_one_fold_cannot_be_tuned(plan_file: Path, tmp_path: Path):
    pytest.importorskip("optuna")
    with pytest.raises(InputError, match="one fold has no validation classes"):
        tune(replace(read_plan(plan_file), folds=1), tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("recipe: multi_similarity", "recipe: 3", "is 3; expected a name or a list"),
        ("pruner: none", "pruner: none, seed: ten", "`tune.seed` of .* is 'ten'"),
    ],
)
def test_wrong_types_in_a_plan_are_named(plan_file: Path, old: str, new: str, said: str):
    plan_file.write_text(plan_file.read_text().replace(old, new))
    with pytest.raises(InputError, match=said):
        read_plan(plan_file)


def test_a_key_may_be_written_in_full():
    whole = {"loss": {"class_path": "L", "init_args": {"margin": 0.1}}}
    tree = {"loss": {"init_args": {"margin": 0.2}}}
    assert as_recipe({"loss.init_args.margin": 0.2}, whole) == as_recipe({"loss.margin": 0.2}, whole) == tree


def test_a_class_and_its_argument_may_be_chosen_together():
    whole = {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1, "momentum": 0.0}}}
    tree = {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}}
    assert as_recipe({"optimizer": "SGD", "optimizer.lr": 0.1}, whole) == tree
    assert as_recipe({"optimizer.lr": 0.1, "optimizer": "SGD"}, whole) == tree


def test_steps_of_a_range():
    pytest.importorskip("optuna")
    found = distributions(
        {"whole": {"low": 1, "high": 9, "step": 2}, "half": {"low": 1, "high": 9, "step": 0.5}}, "ms"
    )
    assert (found["whole"].step, found["half"].step) == (2, 0.5)  # type: ignore[attr-defined]
    for wrong, said in ((0, "`step` above 0"), ("two", "'two' is not a number")):
        with pytest.raises(InputError, match=said):
            distributions({"wrong": {"low": 1, "high": 9, "step": wrong}}, "ms")

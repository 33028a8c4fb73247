"""A search that is really killed goes on to the same trials; several workers share them; its values fit a recipe."""

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from deepmetric.benchmark.benchmark import tuned_recipe
from deepmetric.benchmark.plan import read_plan
from deepmetric.benchmark.resolve import resolved
from deepmetric.benchmark.search_space import distributions
from deepmetric.benchmark.tune import tune
from deepmetric.errors import InputError
from deepmetric.recipes import find_recipe
from deepmetric.training.parse import parse_recipe

from .conftest import start, wait_until

pytest.importorskip("optuna")


def trials(out: Path) -> list[dict[str, str]]:
    with (out / "gratings" / "ms" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_killed_equals_unbroken_and_scores_are_the_folds_validation(plan_file: Path, tmp_path: Path):
    plan = read_plan(plan_file)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tune(plan, whole)
    process = start("tune", plan_file, "--out", broken)
    second = broken / "gratings" / "ms" / "trial-1" / "fold-1"
    wait_until(lambda: (second / "checkpoints" / "last.pt").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(trials(broken)) == 1
    process = start("tune", plan_file, "--out", broken)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "trial 0 of" not in said
    assert trials(broken) == trials(whole)

    done = trials(whole)
    assert [one["state"] for one in done] == ["complete"] * 3
    for one in done:
        folds = [whole / "gratings" / "ms" / f"trial-{one['trial']}" / f"fold-{fold}" for fold in (0, 1)]
        best = [max(_validation(folder)) for folder in folds]
        assert float(one["map@r"]) == pytest.approx(sum(best) / 2, abs=1e-12)
        recipe = yaml.safe_load((folds[1] / "recipe.yaml").read_text())
        assert recipe["loss"]["init_args"]["alpha"] == pytest.approx(float(one["loss.alpha"]))
        assert not (folds[1] / "checkpoints").exists()

    # What was found goes over the system's recipe, in a benchmark and in a training.
    best = max(done, key=lambda one: float(one["map@r"]))
    file = tuned_recipe(whole, "gratings", "ms")
    recipe = resolved(plan, plan.data[0], plan.systems[1], file)
    assert recipe["loss"]["init_args"]["alpha"] == pytest.approx(float(best["loss.alpha"]))
    assert recipe["optimizer"]["init_args"]["lr"] == float(best["optimizer.lr"])
    assert recipe["loss"]["init_args"]["beta"] == 40.0
    files = [plan_file.parent / "data.yaml", find_recipe("systems/multi_similarity"), file]
    parse_recipe([word for path in files for word in ("--config", str(path))])


def _validation(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["map@r"] for line in lines if line.get("split") == "val"]


def test_a_finished_search_needs_no_data(plan_file: Path, image_folder: Path, tmp_path: Path):
    root, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(image_folder, root)
    plan_file.write_text(plan_file.read_text().replace("trials: 3", "trials: 1"))
    plan = read_plan(plan_file, {"gratings": str(root)})
    more = replace(plan, tune=replace(plan.tune, trials=2))
    tune(plan, out)
    first = min(root.rglob("*.png"))
    shutil.copy(first, first.with_name("one_more.png"))
    with pytest.raises(InputError, match="have changed since it was begun"):
        tune(more, out)
    shutil.rmtree(root)
    tune(plan, out)
    with pytest.raises(InputError, match="gratings cannot be used"):
        tune(more, out)


def test_two_workers_do_each_trial_once(plan_file: Path, tmp_path: Path):
    out = tmp_path / "out"
    process = start("tune", plan_file, "--out", out, "--workers", 2, "--systems", "ms")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert said.count(" of 3: ") == 3
    assert len(trials(out)) == 3
    plan_file.write_text(plan_file.read_text().replace("[0.001, 0.01]", "[0.1, 0.01]"))
    with pytest.raises(InputError, match=r"search.optimizer.lr"):
        tune(read_plan(plan_file), out)


def test_trials_that_do_worse_than_the_median_are_pruned(plan_file: Path, tmp_path: Path, monkeypatch):
    """With training replaced by scores that rise with alpha, at half of them first."""
    evaluated: dict[str, int] = {}

    def train(folder: Path, written: dict, opened: object, watch) -> SimpleNamespace:
        score = written["loss"]["init_args"]["alpha"] / 10
        loop = SimpleNamespace(evaluate_every=6)
        for step, best in ((0, 0.0), (6, score / 2), (12, score)):
            watch(SimpleNamespace(step=step, best=best, loop=loop), {})
            evaluated[folder.parent.name] = evaluated.get(folder.parent.name, 0) + (step > 0)
        return SimpleNamespace(best={"map@r": score})

    monkeypatch.setattr("deepmetric.benchmark.run_cell.train_fold", train)
    plan_file.write_text(
        plan_file.read_text().replace("{trials: 3, pruner: none}", "{trials: 10, pruner: median}")
    )
    out = tmp_path / "out"
    tune(read_plan(plan_file), out)
    alphas: list[float] = []
    for one in trials(out):
        alpha = float(one["loss.alpha"])
        poor = len(alphas) >= 5 and alpha < np.median(alphas)
        assert one["state"] == ("pruned" if poor else "complete")
        assert float(one["map@r"]) == pytest.approx(alpha / 20 if poor else alpha / 10)
        assert evaluated.get(f"trial-{one['trial']}", 0) == (0 if poor else 4)  # pruned at the first of 2 x 2
        alphas.append(alpha)
    assert any(one["state"] == "pruned" for one in trials(out))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lo": 1, "high": 2}, "Did you mean 'low'"),
        ({"low": 1}, "both `low` and `high`"),
        ({"low": 2, "high": 1}, "must be below"),
        ({"low": 0, "high": 1, "log": True}, "above 0"),
        ({"choices": []}, "must be a list"),
        ({"low": "a", "high": 1}, "not a number"),
        (3, "expected"),
    ],
)
def test_ranges_that_are_none(given, said):
    with pytest.raises(InputError, match=said):
        distributions({"loss.margin": given}, "ms")


def test_whole_numbers_words_and_what_yaml_takes_for_a_word():
    search = yaml.safe_load(
        "{a: {low: 1, high: 8}, b: {low: 1e-6, high: 1, log: true}, c: {choices: [x, null]}}"
    )
    kinds = {key: type(one).__name__ for key, one in distributions(search, "ms").items()}
    assert kinds == {"a": "IntDistribution", "b": "FloatDistribution", "c": "CategoricalDistribution"}


def test_a_key_that_the_recipe_has_not(plan_file: Path, tmp_path: Path):
    plan_file.write_text(plan_file.read_text().replace("loss.alpha:", "loss.alfa:"))
    with pytest.raises(InputError, match=r"(?s)alfa.*Did you mean 'alpha'"):
        tune(read_plan(plan_file), tmp_path / "out")


def test_nothing_to_tune(plan_file: Path, tmp_path: Path):
    with pytest.raises(InputError, match="nothing to tune"):
        tune(read_plan(plan_file), tmp_path / "out", systems=["triplet_semihard"])

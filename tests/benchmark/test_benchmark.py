"""A whole benchmark on gratings: its numbers by hand, partial, changed, killed, shared."""

import csv
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from deepmetric.benchmark.benchmark import plan_cells, run_benchmark
from deepmetric.benchmark.cells import claim
from deepmetric.benchmark.open_data import Remembered
from deepmetric.benchmark.plan import read_plan
from deepmetric.benchmark.report import progress, write_report
from deepmetric.benchmark.scores import read_results
from deepmetric.cli import main
from deepmetric.data import FolderDataset
from deepmetric.errors import InputError
from deepmetric.evaluation import retrieval_metrics
from deepmetric.training import load_run

from .conftest import start, wait_until

FILES = (
    "report.md",
    "results.csv",
    "significance.csv",
    "recipe_changes.csv",
    "tables.tex",
    "report-gratings.svg",
)


def written(out: Path) -> dict[str, bytes]:
    return {name: (out / "report" / name).read_bytes() for name in FILES}


def finish(process) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def test_numbers_by_hand_then_killed_and_shared_gives_the_same(plan_file: Path, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    plan = read_plan(plan_file)
    assert run_benchmark(plan, whole) == []
    write_report(whole)
    _check_numbers(whole)

    # Killed in the middle of a cell, then two commands and three workers at once.
    process = start("benchmark", plan_file, "--out", broken)
    cells = [cell.folder(broken) for cell in plan_cells(plan)]
    wait_until(lambda: (cells[1] / "checkpoints" / "last.pt").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (cells[1] / "result.json").exists()
    first = start("benchmark", plan_file, "--out", broken, "--workers", 2)
    second = start("benchmark", plan_file, "--out", broken)
    said = finish(first) + finish(second)
    done = re.findall(r"\] (gratings \S+ seed \d fold \d): P@1", said)
    assert (
        len(done)
        == len(set(done))
        == sum(cell.is_dir() for cell in cells) - (str(cells[0]) not in said and 1)
    )
    assert written(broken) == written(whole)


def test_one_fold_trains_on_all_classes_and_tests_the_last_model(plan_file: Path, tmp_path: Path):
    file = tmp_path / "one.yaml"
    file.write_text(plan_file.read_text().replace("folds: 2", "folds: 1"))
    assert run_benchmark(read_plan(file), tmp_path / "out") == []
    results = write_report(tmp_path / "out")
    cell = results.cells[0]
    run = load_run(cell.folder(tmp_path / "out"))
    data = run.dataset()
    assert "val" not in data.splits
    assert results.finished[cell]["validation"] is None
    test = data.split("test")
    scores = retrieval_metrics(run.model().embed(test), test.labels)
    assert results.finished[cell]["test"]["map@r"] == pytest.approx(scores["map@r"], abs=1e-6)
    assert results.data["gratings"].concatenated == {}
    page = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "side by side" not in page
    assert "Trained on all training classes" in page


def _check_numbers(out: Path) -> None:
    results = read_results(out)
    assert len(results.finished) == 8
    with np.load(out / "data" / "gratings.npz") as test:
        labels = test["labels"]
    table = {
        (row["embedding"], row["system"]): row
        for row in csv.DictReader((out / "report" / "results.csv").open())
    }
    for system in ("triplet_semihard", "ms"):
        alone, joint = [], []
        for seed in (0, 1):
            folders = [out / "cells" / "gratings" / system / f"seed{seed}-fold{fold}" for fold in (0, 1)]
            parts = [np.load(folder / "test_embeddings.npy") for folder in folders]
            alone += [retrieval_metrics(part, labels)["map@r"] for part in parts]
            unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
            joint.append(retrieval_metrics(np.concatenate(unit, axis=1), labels)["map@r"])
        assert float(table["separated", system]["map@r"]) == pytest.approx(np.mean(alone), abs=1e-12)
        assert float(table["concatenated", system]["map@r"]) == pytest.approx(np.mean(joint), abs=1e-12)

    # A cell is a run: it can be opened, its data is its fold, and its model gives the embeddings that were kept.
    run = load_run(folders[1])
    data = run.dataset()
    assert data.shared_classes() == {}
    assert len(set(data.labels[data.splits == "val"].tolist())) == 10
    np.testing.assert_allclose(run.model().embed(data.split("test")), parts[1], atol=1e-5)
    assert yaml.safe_load(run.recipe_file.read_text())["loss"]["init_args"]["epsilon"] is None
    assert run.recipe.seed == 3  # of its seed and fold alone
    changed = (out / "report" / "recipe_changes.csv").read_text()
    assert "gratings,ms,loss.epsilon,0.1,None" in changed
    assert "gratings,triplet_semihard,training.log_every,5,10" in changed


def test_report_of_what_is_there(plan_file: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    text = plan_file.read_text().replace("seeds: [0, 1]", "seeds: [0]")
    plan_file.write_text(
        text.replace(
            "- triplet_semihard",
            "- {name: broken, recipe: triplet_semihard, set: {sampler.classes_per_batch: 99}}",
        )
    )
    assert (
        main(["benchmark", str(plan_file), "--out", str(out), "--page", str(tmp_path / "docs" / "page.md")])
        == 1
    )
    said = capsys.readouterr().out
    assert "2 of 4 cells are finished" in said
    assert "missing of broken on gratings: all; 2 failed: sampler: a batch of 99 classes" in said
    page = (tmp_path / "docs" / "page.md").read_text()
    assert "Not complete" in page
    assert "page-gratings.svg" in page
    assert (tmp_path / "docs" / "page-gratings.png").stat().st_size > 1000

    # One fold lost: no figure is made up for it.
    (out / "cells" / "gratings" / "ms" / "seed0-fold1" / "result.json").unlink()
    results = write_report(out)
    assert "missing of ms on gratings: seed 0 fold 1" in progress(results)
    assert list(results.data["gratings"].separated["ms"]) == [(0, 0)]
    assert results.data["gratings"].concatenated == {}
    assert main(["benchmark", "--report", str(out)]) == 0

    # A finished cell belongs to its settings.
    plan_file.write_text(text.replace("log_every: 10", "log_every: 7"))
    with pytest.raises(InputError, match=r"training.log_every was 10, now 7"):
        run_benchmark(read_plan(plan_file), out)


def test_images_are_remembered_and_their_copies_changed_at_will(image_folder: Path):
    source = FolderDataset(image_folder)
    images = [source.read(i) for i in range(4)]
    size = images[0].nbytes
    reads: list[int] = []
    load = source.load
    source.load = lambda row: (reads.append(row), load(row))[1]
    data = Remembered(source, keep_bytes=2 * size)
    for _ in range(3):
        for i in range(4):
            image = data.subset([i])[0].image
            assert (image == images[i]).all()
            image.zero_()
    assert reads == [0, 1, 2, 3, 2, 3, 2, 3]


def test_a_claim_is_one_process_s_and_ends_with_it(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from deepmetric.benchmark.cells import claim\n"
        "with claim(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    with claim(tmp_path) as mine:
        assert not mine
    process.kill()
    process.communicate()
    with claim(tmp_path) as mine:
        assert mine


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("systems:", "sistems:", "has no key 'sistems'.*Did you mean 'systems'"),
        ("- triplet_semihard", "- triplet_semihart", "Did you mean 'systems/triplet_semihard'"),
        ("set: {{", "sett: {{", "has no key 'sett'.*Did you mean 'set'"),
        ("loss.epsilon: null", "loss.epsilonn: null", "ms on gratings: .*Did you mean"),
        ("folds: 2", "folds: 0", "`folds`"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "names a seed twice"),
        ("name: ms", "name: triplet_semihard", "twice"),
        ("pruner: none", "pruner: mediam", "Did you mean 'median'"),
    ],
)
def test_mistakes_are_named(plan_file: Path, tmp_path: Path, before, after, said):
    text = plan_file.read_text()
    before, after = before.replace("{{", "{"), after.replace("{{", "{")
    assert before in text
    plan_file.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=f"(?s){said}"):
        run_benchmark(read_plan(plan_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_somebody_else_s_folder_is_left_alone(plan_file: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "class").mkdir()
    (tmp_path / "file").touch()
    for name in ("out", "file"):
        with pytest.raises(
            InputError, match=r"is not the folder of a benchmark\. Name a new or empty folder"
        ):
            run_benchmark(read_plan(plan_file), tmp_path / name)
    for name in ("out", "no_such"):
        with pytest.raises(InputError, match=r"has no plan\.json"):
            write_report(tmp_path / name)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["class"]
    assert not (tmp_path / "no_such").exists()


FOLDS = "folds: 2", "folds: 200", "gratings cannot be used: .*20 training classes cannot be cut into 200"
ROOT = "data.yaml}", "data.yaml, set: {data.root: /nowhere}}", "gratings cannot be used: .*/nowhere"
NO_TEST = "data.yaml}", "data.yaml, set: {data.split.test: 0}}", "gratings cannot be used: no split 'test'"


@pytest.mark.parametrize(
    ("command", "before", "after", "said"),
    [
        ("benchmark", *FOLDS),
        ("benchmark", *ROOT),
        ("benchmark", *NO_TEST),
        ("tune", *FOLDS),
        ("tune", *ROOT),  # a search needs no test classes
    ],
)
def test_data_is_checked_before_any_cell(
    plan_file: Path, tmp_path: Path, capsys, command, before, after, said
):
    if command == "tune":
        pytest.importorskip("optuna")
    plan_file.write_text(plan_file.read_text().replace(before, after))
    out = tmp_path / "out"
    assert main([command, str(plan_file), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert error.count("\n") == 1
    assert not out.exists()


def test_data_is_opened_once_and_not_for_what_is_finished(
    plan_file: Path, image_folder: Path, tmp_path: Path, monkeypatch
):
    root, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(image_folder, root)
    monkeypatch.setattr(FolderDataset, "__init__", _counted(FolderDataset.__init__, opened := []))
    text = plan_file.read_text().replace("[0, 1]", "[0]").replace("folds: 2", "folds: 1")
    plan_file.write_text(text)
    plan = read_plan(plan_file, {"gratings": str(root)})
    assert run_benchmark(plan, out) == []
    assert len(opened) == 1
    shutil.rmtree(root)
    assert run_benchmark(plan, out) == []
    assert len(opened) == 1
    (plan_cells(plan)[0].folder(out) / "result.json").unlink()
    with pytest.raises(InputError, match="gratings cannot be used"):
        run_benchmark(plan, out)


def test_cells_of_one_table_are_trained_on_the_same_items(
    plan_file: Path, image_folder: Path, tmp_path: Path
):
    root, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(image_folder, root)
    plan_file.write_text(plan_file.read_text().replace("[0, 1]", "[0]").replace("folds: 2", "folds: 1"))
    plan = read_plan(plan_file, {"gratings": str(root)})
    plan = replace(plan, systems=plan.systems[:1])
    assert run_benchmark(plan, out) == []
    first = min(root.rglob("*.png"))  # of a training class: the test items stay as they are
    shutil.copy(first, first.with_name("one_more.png"))
    with pytest.raises(InputError, match=r"have changed since it was begun: .* name another --out"):
        run_benchmark(replace(plan, seeds=(0, 1)), out)


def _counted(function, calls: list):
    def counting(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    # jsonargparse reads the signature of what it builds.
    return functools.wraps(function)(counting)


def test_the_shipped_benchmark_can_be_read():
    from deepmetric.benchmark.resolve import resolved

    plan = read_plan(Path(__file__).parents[2] / "benchmarks" / "reality_check.yaml")
    assert len(plan.systems) >= 12
    assert len(plan.data) == 2
    for system in plan.systems:
        recipe = resolved(plan, plan.data[0], system)
        assert recipe["model"]["init_args"]["embedding_dim"] == 128
        json.dumps(recipe)

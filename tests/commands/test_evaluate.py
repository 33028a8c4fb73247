"""``deepmetric evaluate`` as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deepmetric.cli import main
from deepmetric.data import FolderDataset


def test_json_is_one_object_and_nothing_else(run_folder: Path, capsys) -> None:
    assert main(["evaluate", str(run_folder), "--json", "--untrained", "--clustering", "--ks", "1", "3"]) == 0
    out, err = capsys.readouterr()
    got = json.loads(out)
    assert "embedding" in err  # progress
    assert 0 < got["untrained"]["recall@1"] < got["recall@1"] <= 1
    assert got["precision@1"] == got["recall@1"] <= got["recall@3"]
    assert {"map@r", "r_precision", "mrr", "nmi", "ami"} <= got.keys()
    assert (got["queries"], got["classes"], got["queries_without_positive"]) == (64, 8, 0)
    low, high = got["intervals"]["map@r"]
    assert low <= got["map@r"] <= high
    assert got["classes_also_trained_on"] == []
    table = pq.read_table(got["per_query"])
    assert Path(got["per_query"]) == run_folder / "evaluation" / "test.parquet"
    assert table.num_rows == 64
    assert np.mean(table["map@r"].to_numpy()) == pytest.approx(got["map@r"])
    assert table["id"][0].as_py().startswith(table["label"][0].as_py())


def test_table(run_folder: Path, capsys) -> None:
    assert main(["evaluate", str(run_folder), "--untrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "value", "95%", "interval", "untrained", "95%", "interval"]
    assert [line.split()[0] for line in lines[1:9]] == [
        *(f"recall@{k}" for k in (1, 2, 4, 8)),
        "precision@1",
        "r_precision",
        "map@r",
        "mrr",
    ]
    assert lines[9] == "64 queries of 8 classes, searched among themselves"
    assert lines[10] == "none of these 8 classes is among the 18 that the model was trained on"


def test_post_processing_side_by_side(run_folder: Path, capsys) -> None:
    steps = ["query_expansion(k=2)", "whitening(dim=4) + k_reciprocal(k1=5, k2=2)"]
    assert main(["evaluate", str(run_folder), "--json", "--bootstrap", "100", "--post", *steps]) == 0
    got = json.loads(capsys.readouterr().out)
    assert list(got["post"]) == steps
    for scores in got["post"].values():
        assert scores["queries"] == 64
        assert scores["map@r"] != got["map@r"]
        assert scores["intervals"]["map@r"][0] < scores["map@r"]
    assert main(["evaluate", str(run_folder), "--bootstrap", "100", "--post", "views", steps[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("post-processing"))
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == [
        "none",
        "views",
        "query_expansion(k=2)",
    ]
    value = lines[start + 3].split()[1 + lines[start].split().index("map@r") - 1]
    assert float(value) == pytest.approx(got["post"][steps[0]]["map@r"], abs=1e-4)


def test_published_figures_beside_the_whole_benchmark_alone(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    with (run / "recipe.yaml").open("a") as recipe:
        row = "{data: Gratings, model: 'Small, 8-d', source: Nobody 2020, scores: {recall@1: 65.7, recall@3: 70}}"
        recipe.write(f"published: [{row}]\n")
    evaluate = ["evaluate", str(run), "--bootstrap", "0"]
    assert main(evaluate) == 0
    assert "Nobody" not in capsys.readouterr().out
    monkeypatch.setattr(FolderDataset, "name", "Gratings")
    assert main(evaluate) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["Small,", "8-d", "65.7", "70.0", "Nobody", "2020"]
    assert lines[-3].startswith("this run")
    assert main([*evaluate, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["published"][0]["scores"] == {"recall@1": 65.7, "recall@3": 70}
    assert main([*evaluate, "--split", "val"]) == 0
    assert "Nobody" not in capsys.readouterr().out


def test_whitening_without_training_items(run_folder: Path, capsys) -> None:
    assert main(["evaluate", str(run_folder / "model"), "--data", "glyphs", "--post", "whitening"]) == 2
    assert "learns from the items that the model was trained on" in capsys.readouterr().err


def test_same_data_keeps_the_splits_of_the_run(run_folder: Path, image_folder: Path, capsys) -> None:
    def scores(*extra: str) -> dict:
        assert main(["evaluate", str(run_folder), "--json", "--bootstrap", "0", *extra]) == 0
        return json.loads(capsys.readouterr().out)

    own, given = scores(), scores("--data", str(image_folder))
    differ = {"data", "per_query"}
    assert {k: v for k, v in own.items() if k not in differ} == {
        k: v for k, v in given.items() if k not in differ
    }
    assert Path(given["per_query"]).name == f"{image_folder.name}-test.parquet"
    assert own["intervals"] == {}


def test_classes_that_were_trained_on_are_reported(run_folder: Path, capsys) -> None:
    assert main(["evaluate", str(run_folder), "--split", "train", "--bootstrap", "0"]) == 0
    assert "WARNING: 18 of these 18 classes were trained on: class_00, class_01" in capsys.readouterr().out


@pytest.fixture
def copied(run_folder: Path, image_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the run, on a copy of its images."""
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, images)
    shutil.copytree(run_folder, run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace(str(image_folder), str(images)))
    return run, images


def test_files_of_the_run_that_cannot_be_read_any_more(copied: tuple[Path, Path], capsys) -> None:
    run, images = copied
    broken = sorted(sorted(images.iterdir())[-1].iterdir())[0]
    broken.write_bytes(b"no image")
    arguments = ["evaluate", str(run), "--bootstrap", "0"]
    assert main(arguments) == 2
    assert "--skip_unreadable" in capsys.readouterr().err
    assert main([*arguments, "--skip_unreadable"]) == 0  # as the error advises
    told = capsys.readouterr()
    assert "63 queries" in told.out
    assert "WARNING" not in told.out
    assert f"skipped {broken}" in told.err


def test_a_benchmark_without_its_unreadable_files_is_called_partial(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run, images = copied
    with (run / "recipe.yaml").open("a") as recipe:
        row = "{data: Gratings, model: 'Small, 8-d', source: Nobody 2020, scores: {recall@1: 65.7}}"
        recipe.write(f"published: [{row}]\n")
    sorted(sorted(images.iterdir())[-1].iterdir())[0].write_bytes(b"no image")
    monkeypatch.setattr(FolderDataset, "name", "Gratings")
    assert main(["evaluate", str(run), "--bootstrap", "0", "--skip_unreadable"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Gratings (partial: 63 of 64 images), test\n")
    assert "Nobody" not in out


def test_data_that_have_changed_since_the_training_are_reported(copied: tuple[Path, Path], capsys) -> None:
    """Without some classes the others are dealt anew, and trained ones come to be tested."""
    run, images = copied
    arguments = ["evaluate", str(run), "--bootstrap", "0"]
    assert main(arguments) == 0
    assert "WARNING" not in capsys.readouterr().out
    for folder in sorted(images.iterdir())[-8:]:
        shutil.rmtree(folder)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "WARNING: 4 of these 8 classes were trained on: class_14, class_15, class_16, class_17" in out
    assert "WARNING: the data of" in out
    assert "have changed since it was begun: 240 items then, 176 now" in out
    assert main([*arguments, "--json"]) == 0
    assert "have changed" in json.loads(capsys.readouterr().out)["data_changed"]
    assert main(["train", "--resume", str(run)]) == 2
    assert "have changed since it was begun" in capsys.readouterr().err


def test_figures_are_shown_where_those_of_each_query_cannot_be_kept(
    run_folder: Path, tmp_path: Path, capsys
) -> None:
    arguments = ["evaluate", str(run_folder), "--bootstrap", "0", "--per_query", str(tmp_path)]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert "map@r" in told.out
    assert "are not kept" in told.err


@pytest.mark.skipif(sys.platform == "darwin", reason="there file names are UTF-8")
def test_figures_of_items_that_parquet_cannot_name(
    model_folder: Path, image_folder, tmp_path: Path, capsys
) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    for folder in sorted((tmp_path / "images").iterdir()):
        file = sorted(folder.iterdir())[0]
        file.rename(folder / os.fsdecode(b"\xff.png"))
    arguments = ["evaluate", str(model_folder), "--data", str(tmp_path / "images"), "--bootstrap", "0"]
    assert main([*arguments, "--per_query", str(tmp_path / "q.parquet")]) == 2
    told = capsys.readouterr()
    assert "map@r" in told.out
    assert "are not kept" in told.err


def test_metrics_of_each_query_in_a_folder_with_a_colon(
    run_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(run_folder), "--bootstrap", "0", "--per_query", "run:3/q.parquet"]) == 0
    assert (tmp_path / "run:3" / "q.parquet").is_file()


def test_other_data_and_a_model_alone(model_folder: Path, image_folder: Path, tmp_path: Path, capsys) -> None:
    table = tmp_path / "odd.csv"
    rows = ["path,label,split,is_query,is_gallery"]
    for i, image in enumerate(sorted(image_folder.glob("class_0[0-3]/*.png"))):
        query = i % 8 < 2
        gallery = not query and "class_03" not in str(image)  # nothing of class 3 can be found
        rows.append(f"{image},{image.parent.name},test,{query},{gallery}")
    table.write_text("\n".join(rows))
    per_query = tmp_path / "deep" / "q.parquet"
    arguments = ["evaluate", str(model_folder), "--data", str(table), "--per_query", str(per_query)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "8 queries of 4 classes, searched in 18 items; 2 have nothing of their class" in out
    assert "not known" in out
    column = pq.read_table(per_query)["mrr"].to_numpy()
    assert np.isnan(column).sum() == 2

    assert main([*arguments, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert (got["queries_without_positive"], got["classes_also_trained_on"]) == (2, None)


def test_no_answer_at_all_is_valid_json(
    model_folder: Path, image_folder: Path, tmp_path: Path, capsys
) -> None:
    for name in "ab":
        (tmp_path / "single" / "test" / name).mkdir(parents=True)
        shutil.copy(image_folder / "class_00" / "0.png", tmp_path / "single" / "test" / name)
    assert main(["evaluate", str(model_folder), "--data", str(tmp_path / "single"), "--json"]) == 0
    got = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert got["map@r"] is None
    assert got["intervals"]["map@r"] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "give --data"),
        (["MODEL", "--data", "DATA", "--untrained"], "--untrained needs the recipe of a run"),
        (["RUN", "--split", "tset"], "Did you mean 'test'"),
        (["RUN", "--data", "glyph"], "no data at 'glyph'"),
        (["RUN", "--ks", "0"], "`ks`"),
        (["RUNS/rum"], "Did you mean 'run'"),
    ],
)
def test_wrong_input(arguments, message, run_folder, model_folder, image_folder, capsys) -> None:
    places = {"RUNS": run_folder.parent, "RUN": run_folder, "MODEL": model_folder, "DATA": image_folder}
    words = []
    for word in arguments:
        for name, place in places.items():
            word = word.replace(name, str(place)) if word.split("/")[0] == name else word
        words.append(word)
    assert main(["evaluate", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err

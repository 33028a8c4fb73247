"""``deepmetric embed``, ``index`` and ``search`` as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deepmetric
from deepmetric.cli import main
from deepmetric.search import Index, read_embeddings


@pytest.fixture(scope="module")
def index(model_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "index"
    assert main(["index", str(model_folder), str(image_folder), "-o", str(folder)]) == 0
    return folder


def test_embed(model_folder: Path, image_folder: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "e.parquet"
    command = ["embed", str(model_folder), str(image_folder), "-o", str(file), "--split", "test"]
    assert main([*command, "--shard-size", "50", "--batch_size", "16"]) == 0
    out, err = capsys.readouterr()
    got = read_embeddings(file)
    assert out == f"{file}: {len(got.ids)} embeddings of 8 numbers\n"
    assert f"{len(got.ids)}/{len(got.ids)}" in err
    assert set(got.splits) == {"test"}
    images = [image_folder / name for name in got.ids]
    np.testing.assert_allclose(got.embeddings, deepmetric.load(model_folder).embed(images), atol=1e-6)


def test_index_and_search(index: Path, image_folder: Path, capsys) -> None:
    capsys.readouterr()
    image = image_folder / "class_07" / "3.png"
    assert main(["search", str(index), str(image), "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(image)
    assert lines[1].split() == ["rank", "score", "class", "id"]
    assert lines[2].split() == ["1", "1.0000", "class_07", "class_07/3.png"]
    assert len(lines) == 5

    other = image_folder / "class_01" / "0.png"
    assert main(["search", str(index), str(image), str(other), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert [query["image"] for query in got["queries"]] == [str(image), str(other)]
    first = got["queries"][1]["neighbours"][0]
    assert first == {"rank": 1, "score": pytest.approx(1), "class": "class_01", "id": "class_01/0.png"}
    assert len(got["queries"][0]["neighbours"]) == 10
    assert not index.with_name("index.parts").exists()


def test_index_of_a_split_and_of_the_gallery(model_folder, image_folder, tmp_path: Path, capsys) -> None:
    table = tmp_path / "t.csv"
    rows = ["path,label,split,is_query,is_gallery"]
    for i, image in enumerate(sorted(image_folder.glob("class_0[0-3]/*.png"))):
        rows.append(f"{image},{image.parent.name},{'test' if i < 16 else 'train'},{i % 2 == 0},{i % 2 == 1}")
    table.write_text("\n".join(rows))
    command = ["index", str(model_folder), str(table), "-o", str(tmp_path / "i")]
    assert main([*command, "--split", "test", "--kind", "hnsw"]) == 0
    assert ": 8 items of 2 classes, hnsw (finds 100.0% of the true ten nearest)" in capsys.readouterr().out
    assert main(command) == 0  # replaces it
    assert len(Index.load(tmp_path / "i")) == 24  # items to train on have no role, all can be found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "INDEX", "nowhere.png"], "there is no image nowhere.png"),
        (["search", "INDEX", "DATA"], "is a folder; name the images"),
        (["search", "INDEX", "DATA/class_00/00.png"], "Did you mean '0.png'"),
        (["search", "INDEX", "DATA/class_00/0.png", "-k", "0"], "k is 0"),
        (["search", "INDEX/../indx", "DATA/class_00/0.png"], "Did you mean 'index'"),
        (["search", "MODEL", "DATA/class_00/0.png"], "no finished index"),
        (["index", "MODEL", "DATA", "-o", "DATA"], "holds other things"),
        (["index", "MODEL", "DATA", "-o", "TMP/i", "--kind", "ivf"], "needs 1,000 vectors or more"),
        (["index", "MODEL", "DATA/nothing", "-o", "TMP/i"], "no data at"),
        (["embed", "MODEL", "DATA", "-o", "TMP/no/e.parquet"], "there is no folder"),
        (["embed", "MODEL", "DATA/nothing", "-o", "TMP/e.csv"], "e.parquet; pandas.read_parquet reads it"),
        (["embed", "MODEL/x", "DATA", "-o", "TMP/e.parquet"], "there is no folder"),
    ],
)
def test_wrong_input(arguments, message, index, model_folder, image_folder, tmp_path, capsys) -> None:
    capsys.readouterr()
    places = {"INDEX": index, "DATA": image_folder, "MODEL": model_folder, "TMP": tmp_path}
    words = []
    for word in arguments:
        name, slash, rest = word.partition("/")
        words.append(f"{places[name]}{slash}{rest}" if name in places else word)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.fixture
def broken_file(image_folder: Path, tmp_path: Path) -> Path:
    """One of eight images of the folder tmp_path / "data"."""
    shutil.copytree(image_folder / "class_00", tmp_path / "data" / "class_00")
    file = tmp_path / "data" / "class_00" / "5.png"
    file.write_bytes(b"no image")
    return file


def test_unreadable_files_of_a_data_set(model_folder, broken_file: Path, tmp_path: Path, capsys) -> None:
    command = ["embed", str(model_folder), str(tmp_path / "data"), "-o", str(tmp_path / "e.parquet")]
    assert main(command) == 2
    assert "5.png" in capsys.readouterr().err
    assert main([*command, "--skip_unreadable"]) == 0  # as the error advises
    out, err = capsys.readouterr()
    assert "7 embeddings" in out
    assert "skipped" in err
    assert "5.png" in err


def test_index_after_a_broken_file_was_removed(
    model_folder, broken_file: Path, tmp_path: Path, capsys
) -> None:
    command = ["index", str(model_folder), str(tmp_path / "data"), "-o", str(tmp_path / "i")]
    assert main(command) == 2
    assert "--skip_unreadable" in capsys.readouterr().err
    broken_file.unlink()
    assert main(command) == 0
    assert len(Index.load(tmp_path / "i")) == 7
    assert not (tmp_path / "i.parts").exists()


def test_a_broken_image_is_named(index: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["search", str(index), str(tmp_path / "broken.png")]) == 2
    assert "broken.png" in capsys.readouterr().err


def test_an_unknown_kind_is_refused(model_folder, image_folder, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["index", str(model_folder), str(image_folder), "-o", str(tmp_path / "i"), "--kind", "tree"])
    assert stop.value.code == 2
    assert "flat" in capsys.readouterr().err


def test_help_is_quick_to_import() -> None:
    script = (
        "import sys\n"
        "from deepmetric.cli import main\n"
        "for name in ('evaluate', 'embed', 'index', 'search'):\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'faiss', 'pyarrow'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--untrained" in done.stdout


@pytest.mark.skipif(sys.platform == "darwin", reason="there file names are UTF-8")
def test_an_image_whose_name_cannot_be_printed(index: Path, image_folder: Path, tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"\xff.png")
    shutil.copy(image_folder / "class_07" / "3.png", image)
    command = [sys.executable, "-m", "deepmetric.cli", "search", index, image, "-k", "1"]
    for encoding in ("utf-8:strict", "utf-8:surrogateescape"):  # of most locales, and of C
        shown, as_json = (
            subprocess.run(
                [*command, *option], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
            )
            for option in ([], ["--json"])
        )
        assert shown.returncode == 0, shown.stderr
        assert b"class_07/3.png" in shown.stdout
        assert json.loads(as_json.stdout.decode("utf8"))["queries"][0]["image"] == str(image)

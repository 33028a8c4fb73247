import subprocess
import sys

import pytest

from deepmetric import __version__
from deepmetric.cli import COMMANDS, main


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name}" in text


def test_help_loads_nothing_heavy():
    """The reason why `deepmetric --help` answers at once: none of the slow imports happens."""
    program = (
        "import sys; from deepmetric.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'faiss', 'jsonargparse'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"deepmetric {__version__}"


def test_misspelt_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_no_command_shows_the_usage(capsys):
    assert main([]) == 2
    assert "usage: deepmetric COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"deepmetric {name}" in capsys.readouterr().out


def test_wrong_input_is_one_line_without_a_traceback(capsys):
    assert main(["train", "data/glyps", "systems/multi_similarity"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no recipe 'data/glyps'")
    assert "Traceback" not in error


def test_recipes_lists_one_line_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("data/glyphs ") for line in lines)
    assert any(line.startswith("systems/multi_similarity ") for line in lines)
    assert main(["recipes", "--path", "data/glyphs"]) == 0
    assert capsys.readouterr().out.strip().endswith("recipes/data/glyphs.yaml")


def test_resume_takes_nothing_else(capsys, tmp_path):
    assert main(["train", "--resume", str(tmp_path), "--training.steps", "3"]) == 2
    assert "takes nothing else, got --training.steps 3" in capsys.readouterr().err
    assert main(["train", "--resume"]) == 2
    assert "--resume needs a folder" in capsys.readouterr().err


def test_print_config_shows_the_resolved_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "data/glyphs", "systems/multi_similarity", "--training.steps", "7", "--print_config"])
    text = capsys.readouterr().out
    assert "steps: 7" in text
    assert "class_path: deepmetric.losses.MultiSimilarityLoss" in text


def test_an_occupied_run_folder_is_refused(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("x")
    assert main(["train", "data/glyphs", "systems/multi_similarity", "--run", str(tmp_path / "run")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_what_cannot_be_written_is_one_line(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main(["data", "export", "glyphs", str(file / "images")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {file}")


def test_interrupted_training_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    from deepmetric.training import Trainer

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", interrupt)
    arguments = ["train", "data/glyphs", "systems/contrastive_xbm", "--run", str(tmp_path / "run")]
    assert main(arguments) == 130
    assert f"go on with: deepmetric train --resume {tmp_path / 'run'}" in capsys.readouterr().err

import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml

from deepmetric.cli import main
from deepmetric.errors import InputError
from deepmetric.recipes import find_recipe, shipped_recipes
from deepmetric.training.parse import dump_recipe, parse_recipe, recipe_parser


def parse(file: Path, *arguments: str):
    return parse_recipe(["--config", str(file), *arguments])[0]


def test_parts_are_factories_with_the_recipe_s_arguments(recipe_file):
    recipe = parse(recipe_file, "--training.steps", "7", "--loss.alpha", "3", "--sampler.instances=2")
    assert recipe.training.steps == 7
    assert recipe.loss().alpha == 3
    model = recipe.model()
    assert model.embedding_dim == 16
    memory = recipe.memory(recipe.loss(), 16)
    assert memory.embeddings.shape == (50, 16)
    optimizer = recipe.optimizer([{"params": list(model.parameters())}])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 0.003
    sampler = recipe.sampler(torch.arange(10).repeat_interleave(3).numpy(), seed=3)
    assert len(next(iter(sampler))) == 10


def test_later_recipes_win(recipe_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("loss:\n  class_path: deepmetric.losses.ContrastiveLoss\ntraining:\n  steps: 3\n")
    recipe = parse(recipe_file, "--config", str(other))
    assert type(recipe.loss()).__name__ == "ContrastiveLoss"
    assert recipe.training.steps == 3
    assert recipe.training.evaluate_every == 10


@pytest.mark.parametrize(
    ("arguments", "wrong", "right"),
    [
        (["--training.stesp", "3"], "training.stesp", "training.steps"),
        (["--trainign.steps", "3"], "trainign.steps", "training.steps"),
        (["--loss.alhpa", "3"], "alhpa", "alpha"),
        (["--memory.sise", "3"], "sise", "size"),
        (["--sampler.init_args.instnaces", "3"], "instnaces", "instances"),
        (
            ["--loss.class_path=deepmetric.losses.MultiSimilartyLoss"],
            "MultiSimilartyLoss",
            "MultiSimilarityLoss",
        ),
        (["--sead", "3"], "sead", "seed"),
    ],
)
def test_misspelt_key_on_the_command_line_names_the_nearest(recipe_file, arguments, wrong, right):
    with pytest.raises(InputError) as caught:
        parse(recipe_file, *arguments)
    assert wrong in str(caught.value)
    assert f"Did you mean '{right}'?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("trainig: {steps: 3}", "trainig", "training"),
        ("training: {stepps: 3}", "stepps", "steps"),
        ("loss: {class_path: deepmetric.losses.MultiSimilarityLoss, init_args: {bata: 3}}", "bata", "beta"),
        ("loss: {class_path: deepmetric.losses.ContrastivLoss}", "ContrastivLoss", "ContrastiveLoss"),
        (
            "loss: {class_path: deepmetric.losses.MultiSimilarityLoss, init_arg: {beta: 3}}",
            "init_arg",
            "init_args",
        ),
        (
            "data: {class_path: deepmetric.data.FolderDataset, init_args: {root: x, split: {tset: 3}}}",
            "tset",
            "test",
        ),
    ],
)
def test_misspelt_key_in_a_file_names_the_nearest(recipe_file, tmp_path, text, wrong, right):
    other = tmp_path / "other.yaml"
    other.write_text(text)
    with pytest.raises(InputError) as caught:
        parse(recipe_file, "--config", str(other))
    assert wrong in str(caught.value)
    assert f"Did you mean '{right}" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "where", "expected"),
    [
        (["--training.steps", "many"], "training.steps", "int"),
        (["--training.precision", "fp8"], "training.precision", "bf16"),
        (["--loss.alpha", "abc"], "alpha", "float"),
        (["--memory.size", "big"], "size", "int"),
    ],
)
def test_wrong_type_is_refused_with_the_key_and_what_was_expected(recipe_file, arguments, where, expected):
    with pytest.raises(InputError) as caught:
        parse(recipe_file, *arguments)
    assert where in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("training.steps", "-5", "`training.steps` is -5; expected a whole number from 0"),
        ("training.evaluate_every", "0", "from 1"),
        ("training.checkpoint_every", "0", "from 1"),
        ("training.log_every", "0", "from 1"),
        ("training.patience", "0", "null never stops early"),
        ("training.workers", "-1", "0 reads in the main process"),
        ("training.clip_norm", "-1", "above 0"),
        ("training.clip_norm", "0", "above 0"),
        ("training.ks", "[]", "1 among them"),
        ("training.ks", "[1, 0]", "from 1"),
        ("training.ks", "[5]", "1 among them"),
        ("learning_rates.backbone", "-1", "from 0"),
        ("learning_rates.loss", "-0.1", "from 0"),
    ],
)
def test_setting_out_of_range_is_refused_by_its_name(recipe_file, setting, value, expected):
    with pytest.raises(InputError, match=re.escape(setting)) as caught:
        parse(recipe_file, f"--{setting}", value)
    assert expected in str(caught.value)


def test_zeros_that_mean_something_are_taken(recipe_file):
    zeros = ("--training.steps", "0", "--training.workers", "0", "--learning_rates.backbone", "0")
    recipe = parse(recipe_file, *zeros, "--training.patience", "null", "--training.clip_norm", "null")
    assert (recipe.training.steps, recipe.learning_rates.backbone) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer.lr", "-1"], "Invalid learning rate: -1"),
        (["--optimizer.betas", "[2, 3]"], "Invalid beta parameter"),
        (["--optimizer.foreach", "true", "--optimizer.fused", "true"], "fused"),
    ],
)
def test_optimizer_s_refusal_is_an_input_error(recipe_file, arguments, said):
    recipe = parse(recipe_file, *arguments)
    with pytest.raises(InputError, match=f"`optimizer` of the recipe .*{said}"):
        recipe.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])


@pytest.mark.parametrize("arguments", [["--optimizer.lr", "-1"], ["--training.evaluate_every", "0"]])
def test_command_line_refuses_it_in_a_line_before_there_is_a_run(recipe_file, tmp_path, capsys, arguments):
    assert main(["train", str(recipe_file), *arguments, "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: `")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.yaml", b"# nothing\n", "it is empty"),
        ("list.yaml", b"- a\n", "it holds a list"),
        ("word.txt", b"hello\n", "it holds a single value"),
        ("broken.yaml", b"a: b: c\n", "mapping values are not allowed"),
        ("binary.yaml", b"\xff\xd8\xff\xe0", "it is no text"),
        ("photo.JPG", b"\xff\xd8\xff\xe0", "data/folder and --data.root FOLDER"),
        ("items.csv", b"path,label\na.png,x\n", "data/table and --data.path"),
        ("images.zip", b"PK", "data/folder and --data.root"),
    ],
)
def test_file_that_is_no_recipe(recipe_file, tmp_path, name, content, said, joined):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        parse(recipe_file, *([f"--config={path}"] if joined else ["--config", str(path)]))
    message = str(caught.value)
    assert message.startswith(f"{path} is no recipe")
    assert said in message
    assert "\n" not in message


def test_folder_as_a_recipe_is_told_how_data_is_named(image_folder):
    with pytest.raises(InputError, match=rf"no recipe.*data/folder and --data.root {image_folder}"):
        find_recipe(str(image_folder))


def test_hints_name_recipes_that_there_are():
    assert {"data/folder", "data/table"} <= set(shipped_recipes())


def test_text_of_a_recipe_is_taken_as_before(recipe_file):
    """Longer than a file's name may be."""
    text = "{training: {steps: 3}, published: []" + " " * 5000 + "}"
    assert parse(recipe_file, "--config", text).training.steps == 3


def test_missing_parts_are_named_with_an_example():
    with pytest.raises(InputError, match=r"lacks: data, model, loss.*deepmetric train data/glyphs systems"):
        parse_recipe([])


def test_dump_is_the_same_recipe_again(recipe_file, tmp_path):
    parser = recipe_parser()
    _, values = parse_recipe(["--config", str(recipe_file), "--seed", "5"], parser)
    text = dump_recipe(parser, values)
    again = tmp_path / "again.yaml"
    again.write_text(text)
    parser = recipe_parser()
    _, values = parse_recipe(["--config", str(again)], parser)
    assert dump_recipe(parser, values) == text
    settings = yaml.safe_load(text)
    assert settings["seed"] == 5
    assert settings["loss"]["init_args"]["epsilon"] == 0.1  # defaults are written out


def test_dump_makes_the_data_s_path_absolute(recipe_file, image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    parser = recipe_parser()
    _, values = parse_recipe(["--config", str(recipe_file), "--data.root", image_folder.name], parser)
    assert yaml.safe_load(dump_recipe(parser, values))["data"]["init_args"]["root"] == str(
        image_folder.resolve()
    )


def test_dump_makes_the_path_of_weights_absolute(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    (tmp_path / "bilinear").touch()  # a setting that happens to be called like a file
    parser = recipe_parser()
    arguments = ["--model.weights", "w.pth", "--model.interpolation", "bilinear"]
    _, values = parse_recipe(["--config", str(recipe_file), *arguments], parser)
    model = yaml.safe_load(dump_recipe(parser, values))["model"]["init_args"]
    assert model["weights"] == str((tmp_path / "w.pth").resolve())
    assert model["interpolation"] == "bilinear"


def test_class_without_types_is_taken(recipe_file, tmp_path, monkeypatch):
    (tmp_path / "mine_untyped.py").write_text(
        "import torch\n"
        "class MyLoss(torch.nn.Module):\n"
        "    def __init__(self, margin, scale=2, *, names=None):\n"
        "        super().__init__()\n"
        "        self.settings = margin, scale, names\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    parser = recipe_parser()
    arguments = ["--config", str(recipe_file), "--loss", "mine_untyped.MyLoss", "--loss.margin", "0.5"]
    recipe, values = parse_recipe([*arguments, "--loss.names", "[a, b]"], parser)
    assert recipe.loss().settings == (0.5, 2, ["a", "b"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(parser, values))
    assert parse(again).loss().settings == (0.5, 2, ["a", "b"])
    with pytest.raises(InputError, match=r"margn.*Did you mean 'margin'"):
        parse_recipe([*arguments[:-2], "--loss.margn", "0.5"])


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match=r"no recipe 'data/glyps'.*Did you mean 'data/glyphs'"):
        find_recipe("data/glyps")


def test_every_shipped_recipe_builds_its_parts():
    """Each system on the embedded data, each data set and each model with one system."""
    names = shipped_recipes()
    kinds = {
        kind: [name for name in names if name.startswith(f"{kind}/")]
        for kind in ("data", "systems", "models")
    }
    assert [len(kinds[kind]) >= least for kind, least in (("data", 5), ("systems", 10), ("models", 3))] == [
        True
    ] * 3
    together = [("data/glyphs", system) for system in kinds["systems"]]
    together += [(data, "systems/contrastive_xbm") for data in kinds["data"]]
    together += [("data/folder", model, "systems/multi_similarity") for model in kinds["models"]]
    for files in together:
        recipe = parse_recipe([word for name in files for word in ("--config", str(names[name]))])[0]
        loss = recipe.loss()
        if recipe.memory is not None:
            recipe.memory(loss, 8)
        if recipe.procedure is not None:
            recipe.procedure()
        optimizer = recipe.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
        recipe.schedule(optimizer, recipe.training.steps)
        for make in recipe.augmentation or []:
            make()
    for name, path in names.items():
        assert path.read_text(encoding="utf8").startswith("# "), name


def test_models_fit_data_sets_of_other_backbones():
    names = shipped_recipes()

    def together(data, model):
        files = [str(names[name]) for name in (data, model, "systems/multi_similarity")]
        return parse_recipe([word for file in files for word in ("--config", file)])

    for model in (name for name in names if name.startswith("models/")):
        values = together("data/cifar100", model)[1]
        assert values.model.init_args.backbone_args is None, model  # not those of the data set's own backbone
    # It takes images of one size.
    values = together("data/folder", "models/dinov2")[1]
    crop = next(t for t in values.augmentation if t.class_path.endswith("RandomResizedCrop"))
    assert crop.init_args.size == values.model.init_args.size
    assert together("data/folder", "models/bn_inception")[0].model().preprocessing.size == 112


def test_models_name_backbones_that_there_are():
    """Not built here: their weights are a download."""
    for name, path in shipped_recipes().items():
        if name.startswith("models/"):
            source, _, backbone = yaml.safe_load(path.read_text())["model"]["init_args"][
                "backbone"
            ].partition(":")
            known = {"timm": timm.list_pretrained, "torchvision": torchvision.models.list_models}
            assert not backbone or backbone in known[source](), name


def test_dump_keeps_numbers_that_torchvision_annotates_as_abstract(recipe_file, tmp_path):
    """`degrees` is a numbers.Number to torchvision, which jsonargparse cannot write."""
    other = tmp_path / "other.yaml"
    transform = "torchvision.transforms.v2.RandomAffine"
    other.write_text(
        f"augmentation: [{{class_path: {transform}, init_args: {{degrees: 15, scale: [0.8, 1.2]}}}}]"
    )
    parser = recipe_parser()
    _, values = parse_recipe(["--config", str(recipe_file), "--config", str(other)], parser)
    arguments = yaml.safe_load(dump_recipe(parser, values))["augmentation"][0]["init_args"]
    assert arguments["degrees"] == 15
    assert arguments["scale"] == [0.8, 1.2]

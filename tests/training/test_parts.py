"""HDC, BIER and A-BIER as runs: trained, broken off, resumed; the layer initialised once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deepmetric
from deepmetric.errors import InputError
from deepmetric.losses import ActivationDiversity, BIERLoss
from deepmetric.recipes import find_recipe
from deepmetric.training import Run, Trainer
from deepmetric.training.parse import parse_recipe

# The shipped recipes on the small model of the tests.
SYSTEMS = {
    "hdc": ["--model.dims", "[16, 16]", "--loss.dims", "[16, 16]", "--loss.fractions", "[1.0, 0.5]"],
    "bier": ["--model.groups", "[4, 12]", "--loss.groups", "[4, 12]", "--procedure.initial_steps", "5"],
    "abier": ["--model.groups", "[4, 12]", "--loss.groups", "[4, 12]", "--loss.hidden", "8"],
}


def build(system: str, recipe_file: Path, folder: Path, *arguments: str) -> Trainer:
    files = ["--config", str(recipe_file), "--config", str(find_recipe(f"systems/{system}")), "--memory=null"]
    recipe = parse_recipe([*files, *SYSTEMS[system], *arguments])[0]
    return Trainer(recipe, Run(folder))


def run(*arguments, folder: Path) -> Trainer:
    trainer = build(*arguments[:2], folder, *arguments[2:])
    folder.mkdir()
    trainer.train()
    return trainer


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("system", SYSTEMS)
def test_broken_off_and_resumed_equals_unbroken_and_learns(system, recipe_file, tmp_path, monkeypatch):
    steps = ("--training.steps", "24", "--training.evaluate_every", "12")
    whole = run(system, recipe_file, *steps, folder=tmp_path / "whole")
    losses = [record["loss"] for record in whole.run.metrics() if "loss" in record]
    assert sum(losses[-4:]) < sum(losses[:4])
    broken = build(system, recipe_file, tmp_path / "broken", *steps)
    (tmp_path / "broken").mkdir()
    step = broken._one_step

    def interrupted(*batch):
        if broken.step == 13:
            raise KeyboardInterrupt
        return step(*batch)

    monkeypatch.setattr(broken, "_one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    again = build(system, recipe_file, tmp_path / "broken", *steps)
    again.train(resume=True)
    assert again.run.metrics() == whole.run.metrics()
    assert same(again.model.state_dict(), whole.model.state_dict())
    assert same(again.loss.state_dict(), whole.loss.state_dict())
    loaded = deepmetric.load(tmp_path / "broken")
    assert type(loaded) is type(whole.model)
    assert loaded.embedding_dim == (32 if system == "hdc" else 16)


def test_regressors_are_trained_with_their_own_rate_and_kept(recipe_file, tmp_path):
    before = build("abier", recipe_file, tmp_path / "run").loss.state_dict()
    trainer = run(
        "abier",
        recipe_file,
        "--training.steps",
        "6",
        "--learning_rates.loss",
        "0.02",
        folder=tmp_path / "run",
    )
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert groups["loss"]["initial_lr"] == 0.02
    assert len(groups["loss"]["params"]) == 4
    saved = torch.load(trainer.run.last_checkpoint, weights_only=True)["loss"]
    assert set(saved) == set(before)
    assert all((saved[key] - before[key]).abs().max() > 0.001 for key in saved)


def test_layer_is_initialised_once_on_the_network_s_features(recipe_file, tmp_path):
    arguments = ("--procedure.initial_steps", "100", "--procedure.norm_weight", "10")
    trainer = build("bier", recipe_file, tmp_path / "run", *arguments)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    features = features_of_training(trainer)
    diversity = ActivationDiversity([4, 12], norm_weight=10.0)
    untouched = diversity(features, trainer.model.head.linear.weight)
    generator = torch.get_rng_state()
    trainer.procedure.begin()
    after = trainer.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"head.linear.weight"}
    assert diversity(features, trainer.model.head.linear.weight) < 0.2 * untouched
    assert trainer.model.training
    assert trainer.model.head.linear.weight.grad is None
    assert torch.equal(torch.get_rng_state(), generator)


def features_of_training(trainer: Trainer) -> torch.Tensor:
    """The pooled features of the training items, in evaluation mode."""
    model, data = trainer.model.eval(), trainer.train_data
    transform = model.preprocessing.transform()
    with torch.no_grad():
        images = torch.stack([transform(data.read(i)) for i in range(len(data))])
        features = model._features(model._normalised(images))
    model.train()
    return features


def test_procedure_without_its_loss_or_layer_is_named(recipe_file, tmp_path):
    other = ["--loss.class_path", "deepmetric.losses.MultiSimilarityLoss"]
    files = ["--config", str(recipe_file), "--config", str(find_recipe("systems/bier")), "--memory=null"]
    recipe = parse_recipe([*files, *other])[0]
    with pytest.raises(
        InputError, match=r"needs deepmetric.losses.BIERLoss.*MultiSimilarityLoss and BIERModel"
    ):
        Trainer(recipe, Run(tmp_path / "a"))
    with pytest.raises(InputError, match="16 units, the groups of BIERLoss 8, 12 together 20"):
        build("bier", recipe_file, tmp_path / "b", "--loss.groups", "[8, 12]")


def test_data_named_after_the_system_is_explained(recipe_file, tmp_path):
    """The data's recipe brings its own model then."""
    files = ["--config", str(find_recipe("systems/hdc")), "--config", str(recipe_file), "--memory=null"]
    loss = ["--loss", "deepmetric.losses.HDCLoss", "--loss.dims", "[128, 128, 128]"]
    trainer = Trainer(parse_recipe([*files, *loss])[0], Run(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"width 16.*name the system after the data"):
        trainer.train()


def test_loss_finds_its_place_inside_a_memory(recipe_file, tmp_path):
    files = ["--config", str(recipe_file), "--config", str(find_recipe("systems/abier"))]
    trainer = Trainer(parse_recipe([*files, *SYSTEMS["abier"]])[0], Run(tmp_path / "run"))
    (loss,) = (module for module in trainer.loss.modules() if isinstance(module, BIERLoss))
    assert loss._layer == [trainer.model.head.linear]

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import deepmetric
from deepmetric.errors import InputError
from deepmetric.training import Run, Trainer, load_run
from deepmetric.training.guards import NonFiniteLossError
from deepmetric.training.parse import parse_recipe
from deepmetric.training.processes import Team


def build(recipe_file, folder, *arguments):
    recipe = parse_recipe(["--config", str(recipe_file), *arguments])[0]
    return Trainer(recipe, Run(folder))


def run(recipe_file, folder, *arguments):
    trainer = build(recipe_file, folder, *arguments)
    folder.mkdir()
    trainer.train()
    return trainer


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def validations(folder):
    return [record for record in Run(folder).metrics() if record.get("split") == "val"]


def test_it_learns_and_leaves_all_that_it_promises(recipe_file, tmp_path):
    folder = tmp_path / "run"
    run(recipe_file, folder, "--training.steps", "120", "--training.evaluate_every", "40")
    scores = validations(folder)
    assert [record["step"] for record in scores] == [0, 40, 80, 120]
    assert max(record["map@r"] for record in scores) > scores[0]["map@r"] + 0.1
    for name in (
        "metrics.jsonl",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "model/model.safetensors",
        "model/config.json",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").iterdir())
    losses = [record for record in Run(folder).metrics() if "loss" in record]
    assert len(losses) == 120
    assert all(math.isfinite(record["loss"]) for record in losses)


def test_the_exported_model_is_the_best_by_map_at_r(recipe_file, tmp_path):
    folder = tmp_path / "run"
    trainer = run(recipe_file, folder, "--training.steps", "40")
    best = max(record["map@r"] for record in validations(folder))
    scores = deepmetric.evaluation.evaluate_model(deepmetric.load(folder), trainer.validation, ks=(1,))
    assert scores["map@r"] == pytest.approx(best, abs=1e-6)
    state = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    assert same(dict(state["model"].items()), {**state["model"], **weights(folder)})


def test_groups_have_their_own_learning_rates(recipe_file, tmp_path):
    trainer = build(recipe_file, tmp_path / "run", "--learning_rates.backbone", "0.5")
    found = {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert found == {"backbone": 0.5, "head": 0.01}
    counted = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in trainer.model.parameters())


class LossWithParameters(torch.nn.Module):
    """A loss with class centres, to see that they are trained with their own rate."""

    def __init__(self, classes: int = 30, dim: int = 16):
        super().__init__()
        self.centres = torch.nn.Parameter(torch.zeros(classes, dim))

    def forward(self, embeddings, labels):
        return (embeddings - self.centres[labels]).square().mean()


def test_parameters_of_the_loss_are_a_group_and_are_trained(recipe_file, tmp_path):
    trainer = build(recipe_file, tmp_path / "run", "--memory=null", "--learning_rates.loss", "0.2")
    trainer.recipe.loss = LossWithParameters
    trainer = Trainer(trainer.recipe, Run(tmp_path / "run"))
    assert {g["name"]: g["initial_lr"] for g in trainer.optimizer.param_groups}["loss"] == 0.2
    (tmp_path / "run").mkdir()
    trainer.train()
    assert trainer.loss.centres.abs().sum() > 0


def test_number_of_workers_does_not_change_the_result(recipe_file, tmp_path):
    run(recipe_file, tmp_path / "a")
    run(recipe_file, tmp_path / "b", "--training.workers", "2")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()


def test_another_seed_is_another_run(recipe_file, tmp_path):
    run(recipe_file, tmp_path / "a")
    run(recipe_file, tmp_path / "b", "--seed", "1")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("stop", [7, 10, 25])
def test_stopped_and_resumed_equals_unbroken(recipe_file, tmp_path, stop, monkeypatch):
    run(recipe_file, tmp_path / "whole")
    broken = build(recipe_file, tmp_path / "broken")
    (tmp_path / "broken").mkdir()
    step = broken._one_step

    def interrupted(*batch):
        if broken.step == stop:
            raise KeyboardInterrupt
        return step(*batch)

    monkeypatch.setattr(broken, "_one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    again = build(recipe_file, tmp_path / "broken")
    again.train(resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    whole, resumed = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    assert whole.metrics() == resumed.metrics()
    a, b = (torch.load(r.last_checkpoint, weights_only=True) for r in (whole, resumed))
    assert same(a["loss"], b["loss"])
    assert a["progress"] == b["progress"]
    assert a["sampler"] == b["sampler"]
    assert torch.equal(a["random"]["cpu"], b["random"]["cpu"])


def test_resuming_a_finished_run_changes_nothing(recipe_file, tmp_path):
    run(recipe_file, tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text()
    build(recipe_file, tmp_path / "run").train(resume=True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_losses_in_float32(recipe_file, tmp_path, precision):
    trainer = build(recipe_file, tmp_path / "run", "--training.precision", precision)
    seen = []
    loss = trainer.loss

    class Spy(torch.nn.Module):
        def forward(self, embeddings, labels):
            seen.append((embeddings.dtype, torch.is_autocast_enabled("cpu")))
            return loss(embeddings, labels)

    trainer.loss = Spy()
    (tmp_path / "run").mkdir()
    trainer.train()
    assert set(seen) == {(torch.float32, False)}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_gradients_are_clipped(recipe_file, tmp_path):
    trainer = build(
        recipe_file,
        tmp_path / "run",
        "--training.clip_norm",
        "0.001",
        "--training.steps",
        "3",
        "--schedule.warmup_steps",
        "0",
    )
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(
            torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm().item()
        )
    )
    (tmp_path / "run").mkdir()
    trainer.train()
    assert len(norms) == 3
    assert all(norm <= 0.001001 for norm in norms)


def test_patience_ends_the_run(recipe_file, tmp_path):
    trainer = run(
        recipe_file,
        tmp_path / "run",
        "--training.patience",
        "2",
        "--optimizer.lr",
        "0",
        "--learning_rates.head",
        "0",
        "--training.steps",
        "100",
        "--model.freeze_batchnorm",
        "true",
    )
    assert trainer.step == 20  # the untrained model was the best: two evaluations without a better one
    assert trainer.finished


class BreaksAtStep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, embeddings, labels):
        self.calls += 1
        return embeddings.sum() * (math.nan if self.calls == 4 else 1)


def test_non_finite_loss_stops_the_run_and_says_where(recipe_file, tmp_path):
    trainer = build(recipe_file, tmp_path / "run", "--memory=null")
    trainer.loss = BreaksAtStep()
    (tmp_path / "run").mkdir()
    with pytest.raises(NonFiniteLossError, match=r"nan at step 4; .*class_\d\d/\d.png"):
        trainer.train()


class RootAtZero(torch.nn.Module):
    """A finite loss whose gradient is NaN from the step ``at`` on."""

    def __init__(self, at: int):
        super().__init__()
        self.calls, self.at = 0, at

    def forward(self, embeddings, labels):
        self.calls += 1
        cost = embeddings.square().sum()
        return cost if self.calls < self.at else cost + (embeddings.sum() * 0).sqrt()


@pytest.mark.parametrize("at", [6, 10, 30])  # in between, at a checkpoint, at the end
def test_non_finite_gradient_stops_the_run_before_anything_of_it_is_kept(recipe_file, tmp_path, at):
    trainer = build(recipe_file, tmp_path / "run", "--memory=null", "--data.split.val", "0")
    trainer.loss = RootAtZero(at)
    (tmp_path / "run").mkdir()
    with pytest.raises(NonFiniteLossError, match=rf"gradient is nan at step {at}, .*class_\d\d/\d.png"):
        trainer.train()
    for file in ("last", "best"):
        state = torch.load(tmp_path / "run" / "checkpoints" / f"{file}.pt", weights_only=True)
        assert all(torch.isfinite(value).all() for value in state["model"].values())
        assert state["progress"]["step"] < at
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_a_loss_that_is_no_scalar_is_named(recipe_file, tmp_path):
    trainer = build(recipe_file, tmp_path / "run", "--memory=null")
    trainer.loss = torch.nn.ModuleList()  # no forward of ours is needed
    trainer.loss.forward = lambda embeddings, labels: embeddings.sum(1)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"the loss ModuleList gave a tensor of shape \(15,\)"):
        trainer.train()


def test_logged_rates_are_those_of_the_step(recipe_file, tmp_path):
    trainer = build(recipe_file, tmp_path / "run", "--training.steps", "12")
    used = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    (tmp_path / "run").mkdir()
    trainer.train()
    logged = [record for record in Run(tmp_path / "run").metrics() if "loss" in record]
    assert [[record["lr_backbone"], record["lr_head"]] for record in logged] == used
    assert used[0] == [pytest.approx(0.003 / 4), pytest.approx(0.01 / 4)]


def test_validation_classes_of_one_item_are_refused(recipe_file, tmp_path, image_folder):
    table = tmp_path / "table.csv"
    rows = [f"class_{c:02}/{i}.png,{c},train" for c in range(6) for i in range(3)]
    rows += [f"class_{c:02}/0.png,{c},validation" for c in range(6, 12)]
    table.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    arguments = ["--data=deepmetric.data.TableDataset", f"--data.path={table}", f"--data.root={image_folder}"]
    trainer = build(recipe_file, tmp_path / "run", *arguments, "--data.split=null")
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"no validation item has another one of its class"):
        trainer.train()


def test_random_state_is_of_the_own_device_alone(monkeypatch):
    """A run that began beside eight GPUs may go on beside one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.ones(2))
    given = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append((state, device)))
    team, cuda = Team(), torch.device("cuda")
    assert team.random_state(torch.device("cpu"))["cuda"] == []
    state = team.random_state(cuda)
    assert len(state["cuda"]) == 1
    team.set_random_state({**state, "cuda": [torch.zeros(2), torch.ones(2)]}, cuda)
    team.set_random_state(state, torch.device("cpu"))
    assert len(given) == 1
    assert torch.equal(given[0][0], torch.zeros(2))
    assert given[0][1] == cuda


class SameForAll(torch.nn.Module):
    def forward(self, embeddings, labels):
        return (embeddings - torch.ones(embeddings.shape[1]) / embeddings.shape[1] ** 0.5).square().sum()


def test_collapse_is_warned_of_and_recorded(recipe_file, tmp_path):
    trainer = build(
        recipe_file,
        tmp_path / "run",
        "--memory=null",
        "--training.steps",
        "80",
        "--training.evaluate_every",
        "80",
        "--learning_rates.head",
        "0.1",
    )
    trainer.loss = SameForAll()
    (tmp_path / "run").mkdir()
    trainer.train()
    warnings = [record for record in Run(tmp_path / "run").metrics() if "warning" in record]
    assert len(warnings) == 1
    assert "collapsed" in warnings[0]["warning"]


def test_without_validation_classes_the_last_model_is_kept(recipe_file, tmp_path):
    trainer = run(recipe_file, tmp_path / "run", "--data.split.val", "0")
    assert trainer.validation is None
    exported = weights(tmp_path / "run")
    assert same({**trainer.model.state_dict(), **exported}, trainer.model.state_dict())


def test_validation_on_training_classes_is_refused(recipe_file, tmp_path, image_folder):
    table = tmp_path / "table.csv"
    rows = [f"class_00/{i}.png,a,{'train' if i < 5 else 'validation'}" for i in range(8)]
    rows += [f"class_01/{i}.png,b,train" for i in range(8)]
    table.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    other = tmp_path / "other.yaml"
    other.write_text(
        "data:\n  class_path: deepmetric.data.TableDataset\n"
        f"  init_args: {{path: {table}, root: {image_folder}, split: null}}\n"
    )
    with pytest.raises(InputError, match="share 1 classes"):
        build(recipe_file, tmp_path / "run", "--config", str(other))


def test_several_processes_without_torch_distributed_are_refused(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"torchrun.*init_process_group"):
        build(recipe_file, tmp_path / "run")


def test_unknown_device_is_refused(recipe_file, tmp_path):
    with pytest.raises(InputError, match=r"training.device.*'cdua'"):
        build(recipe_file, tmp_path / "run", "--training.device", "cdua")


def test_skipped_files_are_listed_in_the_run(recipe_file, tmp_path, image_folder):
    import shutil

    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    (root / "class_03" / "broken.png").write_bytes(b"not an image")
    run(
        recipe_file,
        tmp_path / "run",
        "--data.root",
        str(root),
        "--data.skip_unreadable",
        "true",
        "--training.steps",
        "4",
    )
    assert "class_03/broken.png" in (tmp_path / "run/skipped.txt").read_text()


def test_a_run_opens_again(recipe_file, tmp_path, image_folder):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_file.read_text())
    opened = load_run(folder)
    trainer = Trainer(opened.recipe, opened)
    initial = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    assert same(dict(opened.untrained_model().state_dict().items()), initial)
    assert len(opened.dataset()) == 240
    assert not same(opened.model().state_dict(), initial)
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0
    with pytest.raises(InputError, match="no run at"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not the folder of a run"):
        load_run(image_folder)


@pytest.mark.parametrize(
    ("loss", "parameter"),
    [
        ("loss: {class_path: deepmetric.losses.ProxyAnchorLoss}", "proxies"),
        (
            "loss: {class_path: deepmetric.losses.SoftTripleLoss, init_args: {centers_per_class: 2}}",
            "proxies",
        ),
        (
            "loss: {class_path: deepmetric.losses.MarginLoss, init_args: {learn_beta: true, per_class: true}}",
            "beta",
        ),
    ],
)
def test_a_loss_is_told_the_training_classes_and_resumes(recipe_file, tmp_path, loss, parameter):
    """The recipe names no number: there is a row for each class of the training split, which numbers them from 0."""
    other = tmp_path / "other.yaml"
    other.write_text(f"{loss}\nmemory: null\nlearning_rates: {{loss: 0.05}}\ntraining: {{steps: 12}}\n")
    trainer = build(recipe_file, tmp_path / "a", "--config", str(other))
    classes = len(set(trainer.train_data.labels.tolist()))
    assert trainer.train_data.labels.max() == classes - 1
    assert len(trainer.train_data.classes) == classes
    value = getattr(trainer.loss, parameter)
    assert len(value) == classes * getattr(trainer.loss, "centers", 1)
    begun = value.detach().clone()
    (tmp_path / "a").mkdir()
    trainer.train()
    assert not torch.equal(begun, getattr(trainer.loss, parameter))

    (tmp_path / "b").mkdir()
    half = build(recipe_file, tmp_path / "b", "--config", str(other))
    half.loop.checkpoint_every = 5
    _stop_after(half, 5)
    resumed = build(recipe_file, tmp_path / "b", "--config", str(other))
    resumed.train(resume=True)
    assert same(trainer.loss.state_dict(), resumed.loss.state_dict())


def _stop_after(trainer, steps):
    """Train until a kill right after the checkpoint of a step."""
    save = trainer._save

    def save_and_stop(*args, **kwargs):
        save(*args, **kwargs)
        if trainer.step == steps:
            raise KeyboardInterrupt

    trainer._save = save_and_stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_a_loss_of_too_few_classes_is_refused_before_training(recipe_file, tmp_path):
    with pytest.raises(InputError, match="3 classes of width 16; the training data has"):
        build(
            recipe_file,
            tmp_path / "run",
            "--memory=null",
            "--loss=deepmetric.losses.ArcFaceLoss",
            "--loss.num_classes=3",
            "--loss.dim=16",
        )

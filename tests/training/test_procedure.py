"""The moments at which a procedure acts, and that a resumed run cannot be told from an unbroken one."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deepmetric.errors import InputError
from deepmetric.evaluation import embed_dataset
from deepmetric.training import Procedure, Run, Trainer
from deepmetric.training.parse import parse_recipe

EVERY = 7


class Reseeds(Procedure):
    """What is dealt depends on the embedding at the last refresh and on all losses so far."""

    refresh_every = EVERY

    def setup(self, trainer):
        self.trainer, self.calls, self.total = trainer, [], 0.0

    def begin(self):
        self.calls.append(("begin", self.trainer.step))

    def refresh(self):
        self.calls.append(("refresh", self.trainer.step))
        looked = embed_dataset(self.trainer.model, self.trainer.train_data)
        self.trainer.sampler.seed = int(np.abs(looked).sum() * 1e4 + self.total * 1e4) % 2**31

    def after_step(self, embeddings, labels, indices, loss):
        assert not embeddings.requires_grad
        assert not loss.requires_grad
        assert embeddings.shape == (len(labels), 16)
        assert self.trainer.train_data.labels[indices].tolist() == labels.tolist()
        self.calls.append(("step", self.trainer.step))
        self.total += float(loss)

    def metrics(self):
        return {"total": self.total}

    def state_dict(self):
        return {"seed": self.trainer.sampler.seed, "total": self.total}

    def load_state_dict(self, state):
        self.trainer.sampler.seed, self.total = state["seed"], state["total"]


def build(recipe_file, folder, *arguments, procedure=Reseeds):
    recipe = parse_recipe(["--config", str(recipe_file), *arguments])[0]
    recipe.procedure = procedure
    folder.mkdir(exist_ok=True)
    return Trainer(recipe, Run(folder))


def trained(recipe_file, folder, *arguments, **kwargs):
    trainer = build(recipe_file, folder, *arguments, **kwargs)
    trainer.train()
    return trainer


def stop_at(trainer, stop, monkeypatch):
    step = trainer._one_step

    def interrupted(*batch):
        if trainer.step == stop:
            raise KeyboardInterrupt
        return step(*batch)

    monkeypatch.setattr(trainer, "_one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_the_order_of_a_run(recipe_file, tmp_path):
    calls = trained(recipe_file, tmp_path / "run", "--training.steps", "15").procedure.calls
    expected = [("begin", 0)]
    for step in range(15):
        expected += [("refresh", step)] if step % EVERY == 0 else []
        expected += [("step", step + 1)]
    assert calls == expected


def test_what_it_deals_and_logs_is_used(recipe_file, tmp_path):
    changed = trained(recipe_file, tmp_path / "changed", "--training.steps", "10")
    plain = trained(recipe_file, tmp_path / "plain", "--training.steps", "10", procedure=None)
    a, b = (t.run.metrics() for t in (changed, plain))
    losses = [record["loss"] for record in a if "loss" in record]
    assert losses != [record["loss"] for record in b if "loss" in record]
    totals = [record["total"] for record in a if "total" in record]
    assert totals == pytest.approx(np.cumsum(losses).tolist())


@pytest.mark.parametrize(("stop", "workers"), [(12, "2"), (16, "0")])
def test_stopped_and_resumed_equals_unbroken(recipe_file, tmp_path, stop, workers, monkeypatch):
    # resumed at step 10 in the middle of a stretch, or at 14, where a refresh is due
    every = ["--training.steps", "18", "--training.checkpoint_every", "2"]
    whole = trained(recipe_file, tmp_path / "whole", *every)
    stop_at(build(recipe_file, tmp_path / "broken", *every, "--training.workers", workers), stop, monkeypatch)
    again = build(recipe_file, tmp_path / "broken", *every)
    again.train(resume=True)
    assert again.procedure.calls[0][0] != "begin"
    assert whole.run.metrics() == again.run.metrics()
    assert whole.procedure.state_dict() == again.procedure.state_dict()
    a, b = (load_file(t.run.model_folder / "model.safetensors") for t in (whole, again))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_refresh_follows_the_checkpoint_of_its_step(recipe_file, tmp_path, monkeypatch):
    broken = build(recipe_file, tmp_path / "run", "--training.checkpoint_every", "7")
    stop_at(broken, 8, monkeypatch)
    again = build(recipe_file, tmp_path / "run", "--training.checkpoint_every", "7")
    again.train(resume=True)
    assert again.procedure.calls[:2] == [("refresh", 7), ("step", 8)]


def test_the_data_s_categories_reach_the_sampler(recipe_file, tmp_path, image_folder):
    for label in range(30):
        (tmp_path / "nested" / f"group_{label % 10}").mkdir(parents=True, exist_ok=True)
        name = f"class_{label:02}"
        (tmp_path / "nested" / f"group_{label % 10}" / name).symlink_to(image_folder / name)
    sampler = tmp_path / "sampler.yaml"
    sampler.write_text(
        "sampler:\n  class_path: deepmetric.data.HierarchicalSampler\n"
        "  init_args: {categories_per_batch: 2, classes_per_category: 2}\n"
    )
    arguments = ["--config", str(sampler), "--training.steps", "4"]
    trainer = trained(
        recipe_file, tmp_path / "run", *arguments, "--data.root", str(tmp_path / "nested"), procedure=None
    )
    groups = trainer.train_data.categories[next(iter(trainer.sampler))].reshape(2, -1)
    assert (groups == groups[:, :1]).all()
    with pytest.raises(InputError, match="needs categories, and the data has none"):
        build(recipe_file, tmp_path / "other", *arguments, procedure=None)

import numpy as np
import pytest
import torch

from deepmetric.errors import InputError
from deepmetric.evaluation import embed_dataset
from deepmetric.training import HTL, Run, Trainer, build_class_tree, class_means
from deepmetric.training.parse import parse_recipe

RECIPE = """
loss: {class_path: deepmetric.losses.HierarchicalTripletLoss}
sampler:
  class_path: deepmetric.data.AnchorNeighbourSampler
  init_args: {anchors: 2, classes_per_anchor: 3, instances: 3}
procedure: {class_path: deepmetric.training.HTL, init_args: {levels: 8}}
"""


@pytest.fixture
def build(recipe_file, tmp_path):
    system = tmp_path / "system.yaml"
    system.write_text(RECIPE)

    def make(*arguments):
        recipe = parse_recipe(["--config", str(recipe_file), "--config", str(system), *arguments])[0]
        (tmp_path / "run").mkdir(exist_ok=True)
        return Trainer(recipe, Run(tmp_path / "run"))

    return make


def test_each_epoch_has_the_tree_of_its_first_step(build):
    trainer = build("--memory=null", "--training.steps", "20")
    epoch = len(trainer.sampler)
    assert trainer.procedure.refresh_every == epoch < 10
    trees, refresh = [], trainer.procedure.refresh

    def watched():
        x = embed_dataset(trainer.model, trainer.train_data)
        refresh()
        trees.append((trainer.step, trainer.loss.tree))
        expected = build_class_tree(class_means(x, trainer.train_data.labels), 8)
        assert torch.equal(trainer.loss.tree.nodes, expected.nodes)
        assert all(part.training for part in trainer.model.modules())

    trainer.procedure.refresh = watched
    trainer.train()
    assert [step for step, _ in trees] == list(range(0, 20, epoch))
    assert trainer.loss.tree is trees[-1][1]
    records = [r for r in trainer.run.metrics() if "tree_d0" in r]
    assert records[0]["tree_d0"] != records[-1]["tree_d0"]


def test_batches_hold_the_nearest_classes(build):
    trainer = build("--memory=null")
    trainer.procedure.refresh()
    labels = trainer.train_data.labels
    classes = class_means(embed_dataset(trainer.model, trainer.train_data), labels)
    distances = classes.distances(slice(0, len(classes.labels)))
    np.fill_diagonal(distances, np.inf)
    place = {label: k for k, label in enumerate(classes.labels.tolist())}
    for batch in trainer.sampler:
        slots = labels[batch].reshape(2, 3, 3)[:, :, 0]
        first = [place[label] for label in slots[0]]
        other = place[slots[1, 0]]
        free = [k for k in distances[first[0]].argsort() if k != other][:2]
        assert first[1:] == free


def test_a_memory_takes_the_margins_of_its_classes(build):
    trainer = build("--training.steps", "8", "--training.evaluate_every", "8")
    trainer.train()
    assert int(trainer.loss.filled) == 50
    assert trainer.step == 8


def test_another_loss_is_refused(build):
    with pytest.raises(InputError, match="needs the loss HierarchicalTripletLoss"):
        build("--memory=null", "--loss=deepmetric.losses.TripletLoss")
    with pytest.raises(InputError, match="refresh_every"):
        build("--procedure.refresh_every", "0")
    with pytest.raises(InputError, match="`levels` of HTL must be at least 1"):
        HTL(levels=0)
    with pytest.raises(InputError, match=r"`linkage` of HTL.*Did you mean 'average'"):
        HTL(linkage="averge")  # type: ignore[arg-type]

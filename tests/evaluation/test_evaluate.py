"""A model on a data set: one set or query and gallery apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepmetric.data import Dataset
from deepmetric.errors import InputError
from deepmetric.evaluation import embed_dataset, evaluate_embeddings, evaluate_model, retrieval_metrics


class Images(Dataset):
    """Images of one colour; items of a class have like colours."""

    def __init__(self, **roles: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        labels = np.arange(90) // 3
        super().__init__(
            [f"{i}.png" for i in range(90)],
            labels,
            [str(c) for c in range(30)],
            np.full(90, "test"),
            **roles,
        )
        colours = rng.integers(60, 200, (30, 3))[labels] + rng.integers(-40, 40, (90, 3))
        self.images = torch.from_numpy(colours).to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)

    def load(self, row: int) -> torch.Tensor:
        return self.images[row].clone()


class Colour(nn.Module):
    """Mean colour through a batch norm, which must not see the evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.norm(images.float().mean(dim=(2, 3)) - 128))


def colours(data: Images) -> np.ndarray:
    return data.images.float().mean(dim=(2, 3)).numpy() - 128


@pytest.mark.parametrize("workers", [0, 2])
def test_one_set(workers: int) -> None:
    data, model = Images(), Colour()
    scores = evaluate_model(
        model, data, ks=(1, 5), batch_size=7, workers=workers, bootstrap=10, clustering=True
    )
    want = retrieval_metrics(colours(data), data.labels, ks=(1, 5), bootstrap=10, clustering=True)
    assert {k: v for k, v in scores.items() if k not in ("nmi", "ami")} == pytest.approx(
        {k: v for k, v in want.items() if k not in ("nmi", "ami")}
    )
    assert 0 < scores["nmi"] <= 1
    assert scores.intervals.keys() == want.intervals.keys()
    assert model.training
    assert not model.frozen.training  # each module is left in its own mode
    assert model.norm.num_batches_tracked == 0


def test_query_and_gallery_apart() -> None:
    query = np.arange(90) % 3 == 0
    data = Images(is_query=query, is_gallery=~query)
    x = colours(data)
    scores = evaluate_model(Colour(), data)
    assert scores == pytest.approx(
        retrieval_metrics(x[query], data.labels[query], x[~query], data.labels[~query])
    )
    assert (scores["queries"], scores["gallery"]) == (30, 60)


def test_items_in_both_are_left_out_of_their_own_ranking() -> None:
    query = np.arange(90) % 3 < 2
    gallery = np.arange(90) % 3 > 0  # the middle item of each class is in both
    data = Images(is_query=query, is_gallery=gallery)
    neither = data.subset(np.arange(89))  # the last is in the gallery alone
    x = colours(data)
    for some, n in ((data, 90), (neither, 89)):
        q, g = np.flatnonzero(query[:n]), np.flatnonzero(gallery[:n])
        own = np.array([list(g).index(i) if i in g else -1 for i in q])
        want = retrieval_metrics(x[q], data.labels[q], x[g], data.labels[g], self_index=own)
        assert evaluate_model(Colour(), some) == pytest.approx(want)


def test_items_in_neither_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    used = np.arange(90) < 60
    data = Images(is_query=used, is_gallery=used)
    monkeypatch.setattr(Images, "load", lambda self, row: self.images[row] if row < 60 else 1 / 0)
    assert evaluate_model(Colour(), data) == evaluate_model(Colour(), Images().subset(np.arange(60)))


def test_no_gallery() -> None:
    data = Images(is_gallery=np.zeros(90, bool))
    with pytest.raises(InputError, match="90 are queries and 0 are in the gallery"):
        evaluate_model(Colour(), data)
    with pytest.raises(InputError, match="no items"):
        embed_dataset(Colour(), data.subset([]))


def test_a_diverged_model_is_named_by_its_first_item() -> None:
    class Diverged(Colour):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * torch.nan

    with pytest.raises(InputError, match=r"item '0.png'"):
        evaluate_model(Diverged(), Images())


def test_a_batch_that_does_not_fit_is_halved() -> None:
    class Small(Colour):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 10:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    np.testing.assert_allclose(embed_dataset(Small(), Images()), embed_dataset(Colour(), Images()), rtol=1e-6)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    embed_dataset(Colour(), Images())
    assert capsys.readouterr() == ("", "")
    assert embed_dataset(Colour(), Images(), progress=True).dtype == np.float32
    out, err = capsys.readouterr()
    assert out == ""
    assert "90/90" in err


def test_workers_and_threads_agree(image_folder) -> None:
    from deepmetric.data import open_dataset
    from deepmetric.models import EmbeddingModel

    data = open_dataset(image_folder).subset(np.arange(50))
    torch.manual_seed(0)
    model = EmbeddingModel(size=16, embedding_dim=8)
    threads = embed_dataset(model, data, batch_size=16)
    processes = embed_dataset(model, data.with_transform(lambda image: image * 0), batch_size=16, workers=2)
    np.testing.assert_allclose(threads, processes, atol=1e-6)
    assert model.training
    scores = evaluate_model(model, data)
    assert scores == pytest.approx(retrieval_metrics(threads, data.labels))


def test_model_preprocessing_is_used() -> None:
    class Preprocessing:
        def transform(self):
            return lambda image: image.flip(0)

    data, model = Images(), Colour().eval()
    plain = embed_dataset(model, data.with_transform(None))
    model.preprocessing = Preprocessing()  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(embed_dataset(model, data), plain[:, ::-1], rtol=1e-4)


def test_a_layer_called_embed_is_not_the_way_to_embed() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.embed(images.float().mean(dim=(2, 3)))

    assert embed_dataset(Layers(), Images()).shape == (90, 2)


def test_embeddings_of_another_number() -> None:
    query = np.arange(90) % 3 == 0
    for data in (Images(), Images(is_query=query, is_gallery=~query)):
        with pytest.raises(InputError, match="80 embeddings of 90 items"):
            evaluate_embeddings(colours(data)[:80], data)

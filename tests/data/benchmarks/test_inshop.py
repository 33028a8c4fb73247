"""In-Shop Clothes Retrieval: roles of the images, and an evaluation that keeps query and gallery apart."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmetric.data import ClassSplit, InShop, NotTheBenchmark
from deepmetric.errors import InputError
from deepmetric.evaluation import embed_dataset, evaluate_model, retrieval_metrics
from deepmetric.models import EmbeddingModel

from .conftest import dealt, jpeg, write_lines

KINDS = ["WOMEN/Dresses", "WOMEN/Tees_Tanks", "MEN/Denim", "MEN/Pants"]


def rows() -> list[tuple[str, str, str]]:
    """(image, item, status): 3,997 items train; 3,985 others have queries and a gallery."""
    items = [
        *((c, "train") for c in dealt(25882, 3997)),
        *((3997 + c, "query") for c in dealt(14218, 3985)),
        *((3997 + c, "gallery") for c in dealt(12612, 3985)),
    ]
    return [
        (f"img/{KINDS[c % 4]}/id_{c + 1:08}/{i:05}_1_front.jpg", f"id_{c + 1:08}", status)
        for i, (c, status) in enumerate(items)
    ]


def write_list(path: Path, lines: list[tuple[str, str, str]]) -> None:
    table = [f"{name:<80}{item}   {status}" for name, item, status in lines]
    write_lines(path, [str(len(lines)), "image_name item_id evaluation_status", *table])


def test_whole(tmp_path: Path, stub_listing):
    write_list(tmp_path / "Eval/list_eval_partition.txt", rows())
    stub_listing(tmp_path, set())
    data = InShop(tmp_path, split=ClassSplit(val=397))
    assert data.describe().splitlines()[::2] == [
        "In-Shop Clothes Retrieval",
        next(line for line in data.describe().splitlines() if line.startswith("val: ")),
        "no class is in two splits",
    ]
    assert "test: 26,830 items, 3,985 classes, 14,218 queries, 12,612 in the gallery" in data.describe()
    assert data.ks == (1, 10, 20, 30, 40, 50)
    assert len(np.unique(data.split("val").labels)) == 397
    assert data.split("val").is_query.all()
    assert data.split("val").is_gallery.all()
    test = data.split("test")
    assert not (test.is_query & test.is_gallery).any()
    assert test.categories is not None
    assert sorted(set(test.categories.tolist())) == sorted(KINDS)

    lines = rows()
    query = next(i for i, line in enumerate(lines) if line[2] == "query")
    lines[query] = (*lines[query][:2], "gallery")
    write_list(tmp_path / "Eval/list_eval_partition.txt", lines)
    with pytest.raises(NotTheBenchmark, match="14,217 of 14,218 queries, 12,613 of 12,612 gallery"):
        InShop(tmp_path)
    lines[query] = (*lines[query][:2], "querry")
    write_list(tmp_path / "Eval/list_eval_partition.txt", lines)
    with pytest.raises(InputError, match="has the status 'querry'; expected train, query, gallery"):
        InShop(tmp_path)


def small(train: int = 6, test: int = 10) -> list[tuple[str, str, str]]:
    """Items with four images, those of the test with two of each role."""
    chosen = [(f"id_{c:08}", "train") for c in range(train) for _ in range(4)]
    chosen += [
        (f"id_{c:08}", status) for c in range(train, train + test) for status in ("query", "gallery") * 2
    ]
    return [(f"img/WOMEN/Skirts/{item}/{i}.jpg", item, status) for i, (item, status) in enumerate(chosen)]


@pytest.mark.parametrize("place", ["img", "Img/img", "img_highres", "Img/img_highres"])
def test_places_of_the_images(tmp_path: Path, place):
    with zipfile.ZipFile(tmp_path / "inshop.zip", "w") as file:
        write_list(tmp_path / "list.txt", small(2, 2))
        file.write(tmp_path / "list.txt", "InShop/Eval/list_eval_partition.txt")
        for i, (name, _, _) in enumerate(small(2, 2)):
            file.writestr(f"InShop/{name.replace('img', place, 1)}", jpeg(i))
    data = InShop(tmp_path / "inshop.zip", partial=True)
    assert len(data) == 16
    assert data.read(3).shape == (3, 20, 24)
    assert data.ids[0] == "img/WOMEN/Skirts/id_00000000/0.jpg"


def test_evaluation_searches_the_gallery_alone(tmp_path: Path):
    write_list(tmp_path / "list_eval_partition.txt", small())
    for i, (name, _, _) in enumerate(small()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(i))
    test = InShop(tmp_path, partial=True).split("test")
    assert test.name == "In-Shop Clothes Retrieval (partial: 16 of 7,982 classes)"
    torch.manual_seed(0)
    model = EmbeddingModel(backbone_args={"blocks": 2, "width": 8}, size=16, embedding_dim=8).eval()
    scores = evaluate_model(model, test)
    assert (scores["queries"], scores["gallery"]) == (20, 20)
    x = embed_dataset(model, test)
    query, gallery = test.is_query, test.is_gallery
    apart = retrieval_metrics(
        x[query], test.labels[query], x[gallery], test.labels[gallery], ks=(1, 10, 20, 30, 40, 50)
    )
    assert dict(scores) == dict(apart)
    together = retrieval_metrics(x, test.labels, ks=(1, 10))
    assert together["map@r"] != scores["map@r"]

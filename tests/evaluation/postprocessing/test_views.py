import pytest
import torch
import torch.nn.functional as F

from deepmetric.errors import InputError
from deepmetric.evaluation.postprocessing import Views
from deepmetric.models import EmbeddingModel


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    arguments = {"backbone_args": {"blocks": 2, "width": 4}, "embedding_dim": 8, "size": 16, "resize": 20}
    return EmbeddingModel(**arguments).eval()


IMAGES = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_mirrored(model: EmbeddingModel) -> None:
    images = IMAGES[:, :, 2:18, 2:18]
    want = F.normalize(model(images) + model(images.flip(3)), dim=1)
    torch.testing.assert_close(Views(model)(images), want)
    torch.testing.assert_close(Views(model)(images.flip(3)), want)


def test_ten_crops(model: EmbeddingModel) -> None:
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    views = [IMAGES[:, :, y : y + 16, x : x + 16] for y, x in places]
    want = F.normalize(sum(model(v) + model(v.flip(3)) for v in views), dim=1)
    ten = Views(model, crops=5)
    assert (ten.preprocessing.size, ten.preprocessing.resize) == (20, 20)
    torch.testing.assert_close(ten(IMAGES), want)


def test_one_view_is_the_model(model: EmbeddingModel) -> None:
    images = IMAGES[:, :, 2:18, 2:18]
    torch.testing.assert_close(Views(model, flip=False)(images), model(images))


def test_what_cannot_be(model: EmbeddingModel) -> None:
    with pytest.raises(InputError, match="1 or 5"):
        Views(model, crops=3)
    tight = EmbeddingModel(backbone_args={"blocks": 2, "width": 4}, size=16, resize=16)
    with pytest.raises(InputError, match="resized to more"):
        Views(tight, crops=5)

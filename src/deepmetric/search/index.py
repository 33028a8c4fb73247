"""Search by image: vectors, what they are of, and the model that makes more, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from deepmetric.errors import InputError, did_you_mean
from deepmetric.evaluation.inputs import as_embeddings, as_labels
from deepmetric.search import kinds
from deepmetric.search.folder import check_names, part, read_manifest, save_generation
from deepmetric.search.kinds import Kind

if TYPE_CHECKING:
    from deepmetric.models import EmbeddingModel

VECTORS, ITEMS, MODEL = "vectors.faiss", "items.parquet", "model"


class Neighbours(NamedTuple):
    """The k nearest items of Q queries, most similar first; all ``[Q, k]``."""

    ids: np.ndarray  # str
    labels: np.ndarray  # as given to Index.build
    scores: np.ndarray  # float32, cosine in [-1, 1]
    indices: np.ndarray  # int64, rows of the index


class Index:
    """Items that can be searched by cosine similarity. Made by :meth:`build` or :meth:`load`.

    Attributes:
        ids: N names of items.
        labels: ``[N]`` their classes, whole numbers or strings.
        kind: "flat" (exact), "hnsw" or "ivf".
        recall: of the ten nearest, measured on a sample against an exact search when the index was built.

    Example:
        >>> index = Index.build(np.eye(3), ["a", "b", "c"], [0, 0, 1])
        >>> index.search(np.array([[0.9, 0.1, 0.0]]), k=2).ids.tolist()
        [['a', 'b']]
    """

    def __init__(
        self, engine: Any, ids: list[str], labels: np.ndarray, kind: Kind, recall: float, model: Any
    ) -> None:
        self.ids = ids
        self.labels = labels
        self.kind: Kind = kind
        self.recall = recall
        self._engine = engine
        self._ids = np.array(ids, dtype=object)
        self._model: EmbeddingModel | Path | None = model

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._engine.d

    @property
    def model(self) -> EmbeddingModel | None:
        """The model that made the vectors, opened at first use; None when the index has none.

        Raises:
            InputError: the index was replaced on the disk after it was opened, and its model with it.
        """
        if isinstance(self._model, Path):
            from deepmetric.models.load import load

            if not self._model.exists():
                raise InputError(
                    f"{self._model} is gone: the index was replaced since it was opened. Open it again."
                )
            self._model = load(self._model)
        return self._model

    @classmethod
    def build(
        cls,
        embeddings: Any,
        ids: Sequence[str],
        labels: Any,
        model: EmbeddingModel | None = None,
        kind: Kind = "flat",
    ) -> Index:
        """An index over ``[N, d]`` embeddings, which are normalised to unit length here.

        Args:
            ids: N names.
            labels: N whole numbers or strings.
            model: what made the embeddings, for :meth:`search_images`.
            kind: see :func:`deepmetric.search.kinds.build`.

        Raises:
            InputError: lengths that disagree, NaN or infinite values (naming the first id), an unknown kind,
                too few vectors for it, or a model of another width.
        """
        if kind not in get_args(Kind):
            raise InputError(
                f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}.{did_you_mean(kind, get_args(Kind))}"
            )
        names = [str(name) for name in ids]
        x = _unit(as_embeddings(embeddings, "embeddings", names))
        classes = as_labels(labels, "labels", len(x), "embeddings")
        if model is not None and model.embedding_dim != x.shape[1]:
            raise InputError(
                f"the embeddings are {x.shape[1]} wide and the model makes {model.embedding_dim}: they are not its own."
            )
        engine, recall = kinds.build(x, kind)
        return cls(engine, names, classes, kind, recall, model)

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder: FAISS file, table of items, model, manifest.

        An index that is there is replaced at one moment, when the new one is complete; a stop before leaves
        the old one, and a reader always sees one or the other.

        Raises:
            InputError: the folder holds other things than an index, or a name is not valid UTF-8.
        """
        check_names([*self.ids, *map(str, np.unique(self.labels))])
        model = self.model
        items = pa.table({"id": pa.array(self.ids, pa.string()), "label": pa.array(self.labels)})
        parts = {
            VECTORS: lambda path: faiss.write_index(self._engine, str(path)),
            ITEMS: partial(pq.write_table, items),
        }
        if model is not None:
            parts[MODEL] = model.save_pretrained
        facts = {"kind": self.kind, "items": len(self), "dim": self.dim, "recall_at_10": self.recall}
        # absolute, because pyarrow takes a relative name with a colon for a URI
        save_generation(Path(folder).absolute(), parts, facts)

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Open the index in a folder.

        Raises:
            InputError: there is none, or it is damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        while True:
            try:
                return cls._open(folder, manifest)
            except (OSError, RuntimeError, pa.ArrowInvalid, InputError) as error:
                # If it was replaced after the manifest was read, the new manifest names other files.
                before, manifest = manifest, read_manifest(folder)
                if before["files"] == manifest["files"]:
                    raise InputError(
                        f"the index {folder} is damaged: {error} Make it again with `deepmetric index`."
                    ) from error

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any]) -> Index:
        folder = folder.absolute()  # the model is opened later, maybe from elsewhere
        engine = faiss.read_index(str(part(folder, manifest, VECTORS)))
        table = pq.read_table(part(folder, manifest, ITEMS))
        model = part(folder, manifest, MODEL) if MODEL in manifest["files"] else None
        if not engine.ntotal == len(table) == manifest["items"]:
            raise InputError(f"it has {engine.ntotal:,} vectors for {len(table):,} items.")
        labels = table["label"].to_numpy()
        if labels.dtype == object:
            labels = labels.astype(str)
        return cls(engine, table["id"].to_pylist(), labels, manifest["kind"], manifest["recall_at_10"], model)

    def search(self, vectors: Any, k: int = 10) -> Neighbours:
        """The k nearest items of each row of ``vectors`` ``[Q, d]`` (or of one vector ``[d]``).

        An item of the index that is also a query finds itself. k beyond the number of items gives all of
        them.

        Raises:
            InputError: another width than the index's, NaN or infinite values, k below 1.
        """
        if k < 1:
            raise InputError(f"k is {k}; expected the number of neighbours, at least 1.")
        if not isinstance(vectors, torch.Tensor):
            vectors = np.asarray(vectors)
        x = _unit(as_embeddings(vectors[None] if vectors.ndim == 1 else vectors, "vectors"))
        if x.shape[1] != self.dim:
            raise InputError(
                f"`vectors` are {x.shape[1]} wide, the index is {self.dim} wide: another model made them."
            )
        scores, rows = kinds.search(self._engine, x, min(index(k), len(self)))
        return Neighbours(self._ids[rows], self.labels[rows], scores, rows)

    def search_images(self, images: Any, k: int = 10) -> Neighbours:
        """The k nearest items of each image: paths, or whatever ``model.embed`` takes.

        Raises:
            InputError: the index was built without a model, or an image cannot be read.
        """
        if self.model is None:
            raise InputError(
                "this index holds no model and takes vectors alone: use `search`, or build it with one."
            )
        return self.search(self.model.embed(images), k)


def _unit(x: torch.Tensor) -> np.ndarray:
    """Rows of unit length, float32; a row of zeros stays."""
    x = x / x.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return np.ascontiguousarray(torch.nn.functional.normalize(x, dim=1).float().cpu().numpy())

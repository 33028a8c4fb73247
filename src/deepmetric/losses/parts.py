"""Embeddings that are several embeddings side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deepmetric.errors import InputError
from deepmetric.losses.inputs import Batch
from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.metric import Kind


def compare_parts(owner: str, batch: Batch, widths: Sequence[int], kind: Kind) -> Iterator[Comparison]:
    """Each part of the anchors against the same part of the references, rows of a part L2-normalised.

    Raises:
        InputError: the embeddings are of another width than all parts together.
    """
    width = batch.anchors.shape[1]
    if width != sum(widths):
        raise InputError(
            f"{owner} has parts of width {', '.join(map(str, widths))}, {sum(widths)} in all; the embeddings have "
            f"width {width}. The model must give these parts side by side: in a recipe, name the system after the "
            "data, so that the system's model is taken."
        )
    anchors = batch.anchors.split(list(widths), 1)
    itself = batch.refs is batch.anchors
    refs = anchors if itself else batch.refs.split(list(widths), 1)
    for x, ref in zip(anchors, refs):
        yield Comparison(x, batch.labels, ref, batch.ref_labels, batch.own, kind=kind)

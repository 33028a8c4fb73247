"""What must not go unnoticed in training: a loss that is no number, an embedding that has collapsed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepmetric.errors import InputError

# Mean cosine similarity of a batch above which all items look alike to a search.
COLLAPSED = 0.99
# Looks in a row that must see it: a fresh network can pass through such a state in its first steps.
LOOKS = 5


class NonFiniteLossError(InputError):
    """The loss, an embedding or the gradient became NaN or infinite; the message says at which step and on which
    items."""


def check_scalar(loss: object, name: str) -> None:
    """Raise InputError unless what the loss ``name`` gave can be minimised: one number that depends on weights."""
    if not isinstance(loss, Tensor):
        found = f"a {type(loss).__name__}"
    elif loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}"
    elif not loss.requires_grad:
        found = "a tensor without gradient"
    else:
        return
    raise InputError(
        f"the loss {name} gave {found}; expected a scalar tensor that the embeddings take gradients from, also for a "
        "batch that costs nothing (there for example `embeddings.sum() * 0`)."
    )


def check_finite(loss: Tensor, embeddings: Tensor, step: int, ids: list[str]) -> None:
    """Raise NonFiniteLossError unless the scalar ``loss`` and the embeddings are finite.

    Args:
        loss: scalar.
        embeddings: [N, d], what the loss was computed from.
        step: of the run, 1-based.
        ids: N item ids of the batch.
    """
    if torch.isfinite(loss) & torch.isfinite(embeddings).all():
        return
    bad = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        items = ", ".join(ids[i] for i in bad[:8])
        where = f"{len(bad)} of {len(ids)} embeddings are not finite, of the items {items}"
        cure = "Lower the learning rate, clip gradients (training.clip_norm) or use precision fp32 or bf16"
    else:
        where = f"the embeddings are finite. {_batch(ids)}"
        cure = "Check the settings of the loss (scales, margins) and lower the learning rate"
    raise NonFiniteLossError(f"the loss is {loss.item()} at step {step}; {where}. {cure}.")


def check_gradient(norm: Tensor, step: int, ids: list[str]) -> None:
    """Raise NonFiniteLossError unless the scalar ``norm``, of the gradient of a finite loss, is finite."""
    if not torch.isfinite(norm):
        raise NonFiniteLossError(
            f"the norm of the gradient is {norm.item()} at step {step}, though the loss is finite. {_batch(ids)}. "
            "Check what has no derivative in the loss or the model (a root or a norm at 0) and lower the learning rate."
        )


def _batch(ids: list[str]) -> str:
    return f"The batch held {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}"


def mean_similarity(embeddings: Tensor) -> float:
    """Mean cosine similarity over the pairs of different rows of [N, d], in [-1, 1], without an N x N matrix."""
    n = len(embeddings)
    if n < 2:
        return math.nan
    unit = torch.nn.functional.normalize(embeddings.detach().float(), dim=1)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


class CollapseWatch:
    """Says once, in words, when all embeddings have become (nearly) the same."""

    def __init__(self) -> None:
        self.seen = 0

    def look(self, embeddings: Tensor, step: int) -> str | None:
        """A warning at the look that makes the collapse certain, else None."""
        similarity = mean_similarity(embeddings)
        self.seen = self.seen + 1 if similarity > COLLAPSED else 0
        if self.seen != LOOKS:
            return None
        return (
            f"the embedding has collapsed: at step {step} the mean cosine similarity between the items of a batch is "
            f"{similarity:.4f}, all items look alike. Lower the learning rate, or begin with an easier loss or mining "
            f"(semi-hard in place of hard)."
        )

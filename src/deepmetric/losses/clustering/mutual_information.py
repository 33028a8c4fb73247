"""Normalised mutual information of many clusterings that differ by one medoid, from counts alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Normalizer = Literal["arithmetic", "geometric"]


class Classes(NamedTuple):
    """The classes that clusterings are compared with."""

    of: Tensor  # [n] int64, 0 ... number - 1
    number: int
    entropy: Tensor  # scalar, nats
    dtype: torch.dtype
    normalizer: Normalizer

    @classmethod
    def from_labels(cls, labels: Tensor, dtype: torch.dtype, normalizer: Normalizer) -> Classes:
        _, of, sizes = labels.unique(return_inverse=True, return_counts=True)
        return cls(of, len(sizes), _entropy(sizes.to(dtype)[None], len(labels))[0], dtype, normalizer)


def nmi_with_added(classes: Classes, cluster: Tensor | None, moved: Tensor) -> Tensor:
    """NMI [c] of the classes with ``cluster`` [n] int64 after the items ``moved`` [c, n] bool have left for one
    cluster of their own, for each of c ways; ``cluster`` None: all of them moved.

    1 where classes and clustering are both a single group, 0 where one of them alone is.
    """
    n = moved.shape[1]
    gone = moved.to(classes.dtype)
    fresh = gone @ one_hot(classes.of, classes.number).to(classes.dtype)  # [c, classes]
    joint, sizes = [fresh], [fresh.sum(1, keepdim=True)]
    if cluster is not None:
        # The cells of the contingency table that have items: a pair of cluster and class each.
        cell, cell_of = (cluster * classes.number + classes.of).unique(return_inverse=True)
        in_cell = one_hot(cell_of, len(cell)).to(classes.dtype)  # [n, cells]
        joint.append(in_cell.sum(0) - gone @ in_cell)
        in_cluster = one_hot((cell // classes.number).unique(return_inverse=True)[1]).to(classes.dtype)
        sizes.append(joint[1] @ in_cluster)
    cluster_entropy, joint_entropy = _entropy(torch.cat(sizes, 1), n), _entropy(torch.cat(joint, 1), n)
    return _normalised(classes.entropy, cluster_entropy, joint_entropy, classes.normalizer)


def nmi(classes: Classes, cluster: Tensor) -> Tensor:
    """NMI, a scalar, of the classes with ``cluster`` [n] int64."""
    moved = cluster == cluster[:1]
    return nmi_with_added(classes, cluster, moved[None])[0]


def _entropy(counts: Tensor, n: int) -> Tensor:
    """Of counts [c, k] that sum to n along k: [c], in nats."""
    share = counts / max(n, 1)
    return -torch.xlogy(share, share).sum(1)


def _normalised(of_classes: Tensor, of_clusters: Tensor, joint: Tensor, normalizer: Normalizer) -> Tensor:
    information = (of_classes + of_clusters - joint).clamp_min(0)
    if normalizer == "arithmetic":
        scale = (of_classes + of_clusters) / 2
    else:
        scale = (of_classes * of_clusters).clamp_min(0).sqrt()
    tiny = 16 * torch.finfo(joint.dtype).eps
    alike = (of_classes <= tiny) & (of_clusters <= tiny)
    return torch.where(alike, 1, torch.where(scale <= tiny, 0, information / scale.clamp_min(tiny)))

"""Plain loops over items and classes, the truth that the losses with class weights must equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def cross_entropy(own: Tensor, others: list[Tensor], smoothing: float = 0.0) -> Tensor:
    """Of one item, from the definition: targets 1 - ε + ε/C and ε/C against log-probabilities."""
    logits = torch.stack([own, *others])
    target = torch.full_like(logits, smoothing / len(logits))
    target[0] += 1 - smoothing
    return -(target * logits.log_softmax(0)).sum()


def softmax_loss(x: Tensor, labels: Tensor, proxies: Tensor, own, other, smoothing: float = 0.0) -> Tensor:
    """``own(x_i, w_y)`` and ``other(x_i, w_c)`` are logits; ``proxies`` [C, K, d]."""
    costs = []
    for row, y in zip(x, labels.tolist()):
        others = [other(row, w) for c, w in enumerate(proxies) if c != y]
        costs.append(cross_entropy(own(row, proxies[y]), others, smoothing))
    return torch.stack(costs).mean()


def cosine(x: Tensor, w: Tensor) -> Tensor:
    """To the first of a class's centres."""
    return unit(x) @ unit(w[0])


def arc(c: Tensor, margin: float) -> Tensor:
    theta = torch.acos(c)
    return torch.cos(theta + margin) if theta <= math.pi - margin else c - margin * math.sin(margin)


def psi(c: Tensor, m: int) -> Tensor:
    theta = torch.acos(c)
    k = math.floor(m * float(theta.detach()) / math.pi)
    return (-1) ** k * torch.cos(m * theta) - 2 * k


def proxy_nca_of_the_paper(x: Tensor, labels: Tensor, proxies: Tensor, s: float) -> Tensor:
    costs = []
    for row, y in zip(unit(x), labels.tolist()):
        distances = [(row - unit(w[0])).square().sum() for w in proxies]
        wrong = sum((-s * d).exp() for c, d in enumerate(distances) if c != y)
        costs.append(-((-s * distances[y]).exp() / wrong).log())
    return torch.stack(costs).mean()


def proxy_anchor(x: Tensor, labels: Tensor, proxies: Tensor, margin: float, alpha: float) -> Tensor:
    near, far = [], []
    for c, w in enumerate(proxies):
        s = torch.stack([cosine(row, w) for row in x])
        mine = labels == c
        if mine.any():
            near.append((1 + (-alpha * (s[mine] - margin)).exp().sum()).log())
        far.append((1 + (alpha * (s[~mine] + margin)).exp().sum()).log())
    return torch.stack(near).mean() + torch.stack(far).mean()


def soft_similarity(gamma: float):
    def similarity(x: Tensor, w: Tensor) -> Tensor:
        s = unit(w) @ unit(x)
        return ((s / gamma).softmax(0) * s).sum()

    return similarity


def spread(proxies: Tensor, eps: float) -> Tensor:
    c, k = proxies.shape[:2]
    total = torch.zeros((), dtype=proxies.dtype)
    for w in unit(proxies):
        for i in range(k):
            for j in range(i):
                total = total + (2 + eps - 2 * w[i] @ w[j]).sqrt()
    return total / (c * k * (k - 1))

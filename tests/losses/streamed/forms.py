"""Every pair loss as a thin function over `Comparison`: reference users of the operator.

Each takes a Comparison (or the dense twin of conftest.py) of the kind that FORMS names.
"""

# ruff: noqa: C408, E731, E741
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from deepmetric.losses.sampling import squared_distance_log_weight
from deepmetric.losses.streamed import Comparison
from deepmetric.losses.streamed.products import triangle_softplus

softplus = lambda z: F.softplus(z, threshold=100.0)


def over(total, count):
    return total.sum() / count.sum().clamp_min(1)


def contrastive_cosine(c, lam=0.5):
    hinge, count = c.negatives.hinge_sum(lam, above=True)
    return (c.positives.sum(lambda s: 1 - s) + hinge + lam * count).sum() / len(c.anchors)


def contrastive_linear(c, m=1.0):  # PML, kind distance
    p, np_ = c.positives.hinge_sum(0.0, above=True)
    n, nn_ = c.negatives.hinge_sum(m, above=False)
    return over(p, np_) + over(n, nn_)


def contrastive_hadsell(c, m=1.0):
    n, _ = c.negatives.hinge_sum(m, above=False, squared=True)
    return (c.positives.sum(lambda d: 0.5 * d * d) + 0.5 * n).sum() / len(c.anchors)


# triplets: nearness scale*v, scale=-1 for distances
def triplet(c, mining="all", margin=0.2, soft=False, scale=-1.0):
    p = c.positive_list
    v = scale * p.values
    if mining == "hard":
        worst = c.positives.argmax(-scale)
        j = c.negatives.argmax(scale)
        n, found = c.chosen(j)
        p_, fp = c.chosen(worst)
        cost = scale * n - scale * p_ + margin
        cost = softplus(cost) if soft else cost.relu()
        return torch.where(found & fp, cost, 0).sum() / (found & fp).sum().clamp_min(1)
    if mining == "facenet":
        bounds = p.padded(v.detach(), -1e30)
        j = c.negatives.argmax_below(bounds, scale, or_smallest=True)
        n, found = c.chosen(j)
        pad = p.padded(v, 0.0)
        cost = scale * n - pad + margin
        cost = softplus(cost) if soft else cost.relu()
        return torch.where(found, cost, 0).sum() / found.sum().clamp_min(1)
    tau = v - margin
    kw = dict(all={}, band=dict(start=tau, stop=v), hard_band=dict(start=v - 1e-15))[mining]
    if soft and mining == "all":
        total, _ = c.negatives.hinge_over_positives(p, tau, scale=scale, soft=True)
        return total.sum() / (c.positive_count * c.negative_count).sum().clamp_min(1)
    total, count = c.negatives.hinge_over_positives(p, tau, scale=scale, soft=soft, **kw)
    return over(total, count)


def lifted(c, alpha=1.0):  # distance, batch
    l = c.negatives.logsumexp(-1.0) + alpha
    p = c.positive_list
    some = (c.negative_count > 0)[p.anchor]
    l = torch.where(c.negative_count > 0, l, 0)
    j = torch.where(some, torch.logaddexp(l[p.anchor], l[p.ref]) + p.values, 0).relu()
    return j.square().sum() / (2 * max(len(j), 1))


def lifted_general(c, m=1.0):
    ok = (c.positive_count > 0) & (c.negative_count > 0)
    z = c.positives.logsumexp(1.0) + c.negatives.logsumexp(-1.0) + m
    return torch.where(ok, torch.where(ok, z, 0).relu(), 0).mean()


def lifted_dm(c, beta=2.0, alpha=40.0):
    ok = (c.positive_count > 0) & (c.negative_count > 0)
    z = 2 / beta * c.positives.logsumexp(-beta) + 2 / alpha * c.negatives.logsumexp(alpha)
    return torch.where(ok, z, 0).sum() / len(ok)


def binomial(c, a=2.0, b=40.0, lam=0.5):
    return (
        c.positives.softplus_sum(-a, lam) / c.positive_count.clamp_min(1)
        + c.negatives.softplus_sum(b, lam) / c.negative_count.clamp_min(1)
    ).mean()


def margin(c, beta, a=0.2):  # distance, beta [N] of the anchor's class
    p, np_ = c.positives.hinge_sum(beta - a, above=True)
    n, nn_ = c.negatives.hinge_sum(beta + a, above=False)
    return (p + n).sum() / (np_ + nn_).sum().clamp_min(1)


def margin_sampled(c, beta, a=0.2, generator=None):
    p = c.positive_list
    slots = p.padded(torch.ones_like(p.values), 0.0)
    dim = c.anchors.shape[1]
    log_weight = lambda squared: squared_distance_log_weight(squared, dim, 0.5, 1.4)
    j = c.negatives.sample(log_weight, slots.shape[1], generator, kind="squared")
    j = torch.where(slots > 0, j, -1)
    n, found = c.chosen(j)
    dp = p.padded(p.values, 0.0)
    pos = torch.where(found, (dp - beta[:, None] + a).relu(), 0)
    neg = torch.where(found, (beta[:, None] + a - n).relu(), 0)
    return (pos + neg).sum() / ((pos > 0).sum() + (neg > 0).sum()).clamp_min(1)


def nca(c, s=1.0):  # squared
    lp, ln = c.positives.logsumexp(-s), c.negatives.logsumexp(-s)
    ok = c.positive_count > 0
    return torch.where(
        ok, softplus(torch.where(ok, ln - torch.where(ok, lp, 0), 0)), 0
    ).sum() / ok.sum().clamp_min(1)


def nca_knn(c, k=8, a=16.0):
    p = c.positive_list
    j = c.negatives.topk(k)
    n, found = c.chosen(j)
    n = torch.where(found, n, -math.inf)
    pos = p.padded(p.values, -math.inf)
    both = torch.cat([pos, n], 1)
    kth = both.detach().topk(min(k, both.shape[1]), 1).values[:, -1:]
    kth = torch.minimum(kth, pos.detach().amax(1, keepdim=True))  # no positive inside: the nearest positive
    ok = c.positive_count > 0
    inside = both.detach() >= torch.where(ok[:, None], kth, math.inf)
    P = pos.shape[1]
    # if the nearest positive was outside, keep negatives of the k nearest only
    e = torch.where(inside, a * both, -math.inf)
    e = torch.where(ok[:, None], e, 0)
    return torch.where(ok, e.logsumexp(1) - e[:, :P].logsumexp(1), 0).mean()


def multi_similarity(c, alpha=2.0, beta=50.0, base=0.5, eps=0.1):
    if eps is None:
        ln, lp = c.negatives.logsumexp(beta), c.positives.logsumexp(-alpha)
    else:
        ln, top = c.negatives.logsumexp_and_hardest(beta, beyond=c.positives.min() - eps)
        lp = c.positives.logsumexp(-alpha, beyond=top + eps)
    return (softplus(lp + alpha * base) / alpha + softplus(ln - beta * base) / beta).mean()


def npairs(c):  # refs: the other item of each class; every anchor has one positive
    p = c.positive_list
    return p.total(softplus(c.negatives.logsumexp(1.0)[p.anchor] - p.values)).mean()


def ntxent(c, t=0.07):
    return c.positives.sum(
        lambda s, l: softplus(l - s / t), c.negatives.logsumexp(1 / t)
    ).sum() / c.positive_count.sum().clamp_min(1)


def supcon(c, t=0.1):
    n = c.positive_count
    ok = n > 0
    l = torch.logaddexp(torch.where(ok, c.positives.logsumexp(1 / t), 0), c.negatives.logsumexp(1 / t))
    return torch.where(
        ok, l - c.positives.sum(lambda s: s / t) / n.clamp_min(1), 0
    ).sum() / ok.sum().clamp_min(1)


def circle(c, m=0.4, g=80.0):
    lp = c.positives.logsumexp(
        fn=lambda s: g * (1 + m - s).relu() * (1 - m - s), slope=lambda s: -g * (1 + m - s).relu()
    )
    ln = c.negatives.logsumexp(
        fn=lambda s: s.clamp_min(-m).square_().sub_(m * m).mul_(g),
        slope=lambda s: s.clamp_min(-m).add_(m).mul_(g),
    )
    ok = (c.positive_count > 0) & (c.negative_count > 0)
    return torch.where(ok, softplus(torch.where(ok, lp + ln, 0)), 0).sum() / ok.sum().clamp_min(1)


def tuplet(c, s=64.0, b=0.1):
    ln = c.negatives.logsumexp(s)
    return c.positives.sum(
        lambda v, l: softplus(l - s * torch.cos(torch.acos(v.clamp(-1 + 1e-7, 1 - 1e-7)) - b)), ln
    ).sum() / c.positive_count.sum().clamp_min(1)


def intra_pair(c, e=0.01):
    mp = over(c.positives.sum(lambda s: s), c.positive_count)
    mn = over(c.negative_sum(), c.negative_count)
    n = len(c.anchors)
    p, pc = c.positives.hinge_sum((1 - e) * mp.expand(n), above=False, squared=True)
    q, qc = c.negatives.hinge_sum((1 + e) * mn.expand(n), above=True, squared=True)
    return over(p, pc) + over(q, qc)


def angular(c, alpha=40.0):
    t2 = math.tan(math.radians(alpha)) ** 2
    p = c.positive_list
    threshold = 2 * (1 + t2) * p.values
    if isinstance(c, Comparison):
        total, number = triangle_softplus(c, 4 * t2, threshold)
        return total / max(number, 1)
    # The dense truth: a row for each pair.
    exponent = 4 * t2 * (c.value[p.anchor] + c.refs[p.ref] @ c.refs.T)
    others = torch.where(c.negative[p.anchor], exponent.exp(), 0).sum(1)
    return torch.log1p(others * (-threshold).exp()).sum() / max(len(others), 1)


def ranked_list(c, m=0.4, T=5.0, alpha=1.2, Tp=0.0, lam=0.5):  # distance
    n = len(c.ref_labels) * 1e-5
    p, wp = c.positives.exponential_hinge(Tp, alpha - m, above=True)
    q, wq = c.negatives.exponential_hinge(T, alpha, above=False)
    return ((1 - lam) * p / (wp + n) + lam * q / (wq + n)).mean()


def hard_mined(c, eps=0.1):
    least = (c.positives.min() - eps).clamp(-9, 9)
    q, nq, most = c.negatives.hinge_sum_and_hardest(least, above=True)
    most = (most + eps).clamp(-9, 9)
    p, np_ = c.positives.hinge_sum(most, above=False)
    return ((q + nq * least) / nq.clamp_min(1) + (p + np_ * (1 - most)) / np_.clamp_min(1)).mean()


def binomial_mined(c, a=2.0, b=40.0, lam=0.5, eps=0.1):
    q, nq, most = c.negatives.softplus_sum_beyond(b, lam, (c.positives.min() - eps).clamp(-9, 9))
    p, np_, _ = c.positives.softplus_sum_beyond(-a, lam, (most + eps).clamp(-9, 9))
    return (q / nq.clamp_min(1) + p / np_.clamp_min(1)).mean()


def gpw(c, pos, neg):
    return (c.negatives.weighted_sum(neg) - c.positives.weighted_sum(pos)).mean()


# name: (kind, normalize, loss). Losses of per-class parameters take them as a second argument.
FORMS = {
    "contrastive cosine": ("dot", True, contrastive_cosine),
    "contrastive linear": ("distance", True, contrastive_linear),
    "contrastive Hadsell": ("distance", False, contrastive_hadsell),
    "triplet all": ("squared", True, triplet),
    "triplet all distance": ("distance", True, triplet),
    "triplet all cosine": ("dot", True, lambda c: triplet(c, scale=1.0)),
    "triplet all soft": ("squared", True, lambda c: triplet(c, soft=True)),
    "triplet all soft, not normalised": ("distance", False, lambda c: triplet(c, soft=True)),
    "triplet band": ("squared", True, lambda c: triplet(c, "band")),
    "triplet band soft": ("squared", True, lambda c: triplet(c, "band", soft=True)),
    "triplet hard band": ("distance", True, lambda c: triplet(c, "hard_band")),
    "triplet semi-hard": ("squared", True, lambda c: triplet(c, "facenet", margin=1.0)),
    "triplet hard": ("distance", True, lambda c: triplet(c, "hard")),
    "triplet hard soft": ("squared", False, lambda c: triplet(c, "hard", soft=True)),
    "lifted": ("distance", False, lifted),
    "lifted general": ("distance", True, lifted_general),
    "lifted Deep_Metric": ("dot", True, lifted_dm),
    "binomial": ("dot", True, binomial),
    "margin": ("distance", True, margin),
    "NCA": ("squared", True, nca),
    "NCA kNN": ("dot", True, nca_knn),
    "multi-similarity": ("dot", True, multi_similarity),
    "multi-similarity, unmined": ("dot", True, lambda c: multi_similarity(c, eps=None)),
    "multi-similarity, steep": ("dot", True, lambda c: multi_similarity(c, beta=90.0)),
    "N-pairs": ("dot", False, npairs),
    "NT-Xent": ("dot", True, ntxent),
    "SupCon": ("dot", True, supcon),
    "circle": ("dot", True, circle),
    "tuplet margin": ("dot", True, tuplet),
    "intra-pair variance": ("dot", True, intra_pair),
    "angular": ("dot", True, angular),
    "ranked list": ("distance", True, ranked_list),
    "hard mining": ("dot", True, hard_mined),
    "binomial, mined": ("dot", True, binomial_mined),
    "general pair weighting": (
        "dot",
        True,
        lambda c: gpw(c, lambda s: torch.exp(-2 * s), lambda s: s.exp() * (s - 0.1).relu()),
    ),
}
PARAMETERISED = {"margin"}

"""The slow truth: the interface of Comparison over full matrices and masks, in plain torch."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from deepmetric.losses.streamed import PairList


class Dense:
    """Comparison with every reduction over the whole N x M matrix."""

    def __init__(self, x, labels, refs, ref_labels, own, *, kind="dot", normalize=True) -> None:
        itself = refs is x
        if normalize:
            x = x / x.norm(dim=1, keepdim=True)
            refs = x if itself else refs / refs.norm(dim=1, keepdim=True)
        self.anchors, self.labels, self.refs, self.ref_labels = x, labels, refs, ref_labels
        self.width, self.listed = None, 0
        self.kind = kind
        same = labels[:, None] == ref_labels[None, :]
        mine = torch.zeros_like(same)
        if own is not None:
            mine = own[:, None] == torch.arange(len(refs))[None, :]
        value = self.matrix(x, refs)
        self.value = value
        self.positive, self.negative = same & ~mine, ~same & ~mine
        self.positives = DenseSide(value, self.positive)
        self.negatives = DenseSide(value, self.negative)
        self.positive_count, self.negative_count = self.positive.sum(1), self.negative.sum(1)
        anchor, ref = self.positive.nonzero().unbind(1)
        self.positive_list = PairList(anchor, ref, value[anchor, ref], len(x))

    def matrix(self, x: Tensor, refs: Tensor) -> Tensor:
        if self.kind == "dot":
            return x @ refs.T
        squared = (x[:, None] - refs[None, :]).square().sum(2)
        if self.kind == "squared":
            return squared
        apart = squared > 1e-14
        return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)

    def negative_sum(self) -> Tensor:
        return self.negatives.sum(lambda v: v)

    def chosen(self, ref: Tensor) -> tuple[Tensor, Tensor]:
        flat = ref.view(len(ref), -1)
        value = self.value.gather(1, flat.clamp_min(0)).view(ref.shape) if self.value.numel() else ref * 0.0
        return torch.where(ref >= 0, value, 0), ref >= 0


class DenseSide:
    def __init__(self, value: Tensor, mask: Tensor) -> None:
        self.value, self.mask = value, mask

    def total(self, cost: Tensor) -> Tensor:
        return torch.where(self.mask, cost, 0).sum(1)

    def sum(self, fn, *params, slope=None):  # a slope, where one is given, is to be the derivative
        return self.total(fn(self.value, *(t[:, None] for t in params)))

    def hinge_sum(self, threshold, *, above, squared=False):
        t = threshold[:, None] if isinstance(threshold, Tensor) and threshold.ndim else threshold
        hinge = (self.value - t if above else t - self.value).relu()
        count = (self.mask & (hinge > 0)).sum(1)
        return self.total(hinge.square() if squared else hinge), count

    def softplus_sum(self, scale, shift):
        return self.total(torch.log1p(torch.exp(scale * (self.value - shift))))

    def softplus_sum_beyond(self, scale, shift, beyond):
        kept = DenseSide(self.value, self.mask & (scale * self.value > (scale * beyond)[:, None]))
        hardest = self.max() if scale > 0 else self.min()
        return kept.softplus_sum(scale, shift), kept.mask.sum(1), hardest

    def hinge_sum_and_hardest(self, threshold, *, above):
        return *self.hinge_sum(threshold, above=above), self.max() if above else self.min()

    def exponential_hinge(self, sharpness, radius, *, above):
        h = self.value - radius if above else radius - self.value
        on = (h > 0) & (self.value > 0)
        w = torch.where(on, (sharpness * h).exp(), 0)
        return self.total(w * h), self.total(w)

    def weighted_sum(self, weight):
        return self.total(weight(self.value).detach() * self.value)

    def logsumexp(self, scale=1.0, *, beyond=None, fn=None, params=(), slope=None):
        e = fn(self.value, *(t[:, None] for t in params)) if fn is not None else scale * self.value
        if slope is not None:
            e = (e - slope(self.value) * self.value).detach() + slope(self.value).detach() * self.value
        mask = self.mask
        if beyond is not None:
            mask = mask & (e > scale * beyond[:, None])
        some = mask.any(1)
        e = torch.where(some[:, None], torch.where(mask, e, -math.inf), 0)
        return torch.where(some, e.logsumexp(1), -math.inf)

    def logsumexp_and_hardest(self, scale, *, beyond=None):
        return self.logsumexp(scale, beyond=beyond), (self.max() if scale > 0 else self.min())

    def max(self):
        value = torch.where(self.mask, self.value.detach(), -math.inf)
        return value.amax(1) if value.shape[1] else value.new_full((len(value),), -math.inf)

    def min(self):
        return -DenseSide(-self.value, self.mask).max()

    def hinge_over_positives(self, positives, threshold, *, scale=1.0, start=None, stop=None, soft=False):
        v = (scale * self.value)[positives.anchor]
        z = v - threshold[:, None]
        on = self.mask[positives.anchor]
        if start is not None:
            on = on & (v > start[:, None])
        if stop is not None:
            on = on & (v < stop[:, None])
        if not soft and start is None:
            on = on & (z > 0)
        cost = torch.log1p(torch.exp(z)) if soft else z
        each = positives.total(torch.where(on, cost, 0).sum(1))
        return each, positives.total(on.sum(1).to(v.dtype))

    def argmax(self, scale=1.0):
        return self.topk(1, scale)[:, 0]

    def argmax_below(self, bounds, scale=1.0, *, or_smallest=False):
        v = torch.where(self.mask, scale * self.value.detach(), -math.inf)
        every = [DenseSide(v, self.mask & (v < b[:, None])).argmax() for b in bounds.unbind(1)]
        found = torch.stack(every, 1)
        return torch.where((found < 0) & (bounds > -1e30), self.argmax(-scale)[:, None], found)

    def topk(self, k, scale=1.0):
        v = torch.where(self.mask, scale * self.value.detach(), -math.inf)
        v = torch.cat([v, v.new_full((len(v), k), -math.inf)], 1)
        value, ref = v.topk(k, dim=1)
        return torch.where(value > -math.inf, ref, -1)


@pytest.fixture(scope="session")
def dense() -> type[Dense]:
    return Dense


@pytest.fixture(scope="session")
def forms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("forms", Path(__file__).with_name("forms.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

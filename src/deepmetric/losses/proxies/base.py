"""The one interface of the losses that hold a weight vector, a proxy, for each class."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.losses.classes import check_class_labels
from deepmetric.losses.inputs import checked_batch
from deepmetric.losses.proxies.pools import Pool
from deepmetric.losses.proxies.shares import Share, joined, logsumexp_of_all, own_gradient
from deepmetric.losses.proxies.tiles import Job, Logits, class_logits
from deepmetric.losses.sampling import numbered_generator
from deepmetric.losses.streamed.gradients import without_autocast
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.rows import unit_rows


class ClassBatch(NamedTuple):
    """Checked input of a loss over classes: items [N, d] float32 or float64, labels [N] int64."""

    embeddings: Tensor
    labels: Tensor


class ClassLoss(nn.Module):
    """A loss of items against a vector, or several, for each class; these ``proxies`` are its parameters.

    A subclass writes :meth:`of_batch` from :meth:`logits`, and :meth:`reset_parameters`; checks, dtypes and
    autocast are settled here, once. Logits are computed in tiles of classes: neither pass keeps a matrix of items
    by classes, nor a normalised copy of the proxies.

    Give the proxies an optimiser group of their own: they need a learning rate of 10 to 10,000 times that of the
    network (in a recipe ``learning_rates.loss``), and no weight decay.

    Args:
        num_classes: C; labels are 0 ... C - 1. None, with ``dim``: to be told by :meth:`set_classes`, which the
            trainer calls with the classes of the training split, before the first batch.
        dim: width of the embeddings.
        centers: vectors a class.
        negative_fraction: share of the classes compared with in a training step: those of the batch and others
            drawn at random (An et al., "Partial FC", CVPR 2022). 1: all. Below 1 a step costs less, and optimisers
            with momentum still move the classes that were not drawn.
        sharded: over several processes (:func:`~deepmetric.losses.across_processes`, called before the optimiser is
            made) each keeps the proxies of its share of the classes instead of all; see below.
        seed: of the drawing.

    Over several processes proxies are parameters like others: each process compares its own items with all classes,
    and the mean of the gradients over the processes is the gradient. With ``sharded`` process r of R holds the classes
    rC/R to (r + 1)C/R and compares the items of all processes with them. Its proxies' gradient is then whole as it is:
    keep them out of whatever averages gradients. ``state_dict`` is the same in both ways: it has all classes, which
    are gathered when every process asks for it, and loads into any number of processes.

    Attributes:
        proxies: [C * centers, dim], row c * centers + k the k-th of class c; with ``sharded`` those of the share.
        share: the classes of this process, where they are shared out; else None.
    """

    proxies: nn.Parameter
    draws: Tensor

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        *,
        centers: int = 1,
        negative_fraction: float = 1.0,
        sharded: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._processes: Processes | None = None
        self.share: Share | None = None
        if (num_classes is None) != (dim is None):
            raise InputError(
                f"{self._name} was given {'`dim`' if num_classes is None else '`num_classes`'} alone. Give both, "
                "the number of training classes and the width of the embeddings, or neither in a recipe."
            )
        if not 0 < negative_fraction <= 1:
            raise InputError(
                f"`negative_fraction` of {self._name} must be above 0 and at most 1; got {negative_fraction}."
            )
        if centers < 1:
            raise InputError(f"{self._name} needs at least 1 centre a class; got {centers}.")
        self.num_classes, self.dim = num_classes, dim
        self.centers = centers
        self.negative_fraction = negative_fraction
        self.sharded = sharded
        self.seed = seed
        self.register_buffer("draws", torch.tensor(0))
        if num_classes is not None and dim is not None:
            self._make(num_classes, dim)

    def set_classes(self, num_classes: int, dim: int) -> None:
        """Make the proxies, if the constructor was not told their number; else check that they fit.

        Raises:
            InputError: there are fewer proxies than classes, or they have another width.
        """
        if self.num_classes is None:
            self._make(num_classes, dim)
        elif self.num_classes < num_classes or self.dim != dim:
            raise InputError(
                f"{self._name} has {self.num_classes} classes of width {self.dim}; the training data has "
                f"{num_classes} classes, the model's embedding the width {dim}. Leave `num_classes` and `dim` out "
                "of the recipe."
            )

    def _make(self, num_classes: int, dim: int) -> None:
        if num_classes < 1 or dim < 1:
            raise InputError(
                f"`num_classes` and `dim` of {self._name} must be at least 1; got {num_classes} and {dim}."
            )
        self.num_classes, self.dim = num_classes, dim
        self.proxies = nn.Parameter(torch.empty(num_classes * self.centers, dim))
        self.reset_parameters()
        self._take_share()

    @property
    def processes(self) -> Processes | None:
        """The processes that share this loss, set by :func:`~deepmetric.losses.across_processes`."""
        return self._processes

    @processes.setter
    def processes(self, processes: Processes | None) -> None:
        self._processes = processes
        self._take_share()

    def _take_share(self) -> None:
        """Of the proxies just made keep those of this process."""
        if not self.sharded or self._processes is None or self.num_classes is None or self.share is not None:
            return
        if self.num_classes < self._processes.size:
            raise InputError(
                f"{self.num_classes} classes cannot be shared out to {self._processes.size} processes. Leave "
                f"`sharded` of {self._name} out."
            )
        self.share = Share.of(self.num_classes, self._processes)
        self.proxies = nn.Parameter(self.proxies.detach()[self.rows].clone())

    @property
    def rows(self) -> slice:
        """Where among the proxies of all classes those of the share are."""
        assert self.share is not None
        return slice(self.share.start * self.centers, self.share.stop * self.centers)

    def reset_parameters(self) -> None:
        """Draw the proxies anew."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar of float32 (float64 for float64 input) that is always attached to the graph; NaN if an
        embedding is NaN or infinite.

        Args:
            embeddings: [N, dim] floating point; half precision and autocast are computed in float32.
            labels: [N] integers, 0 ... num_classes - 1.

        Raises:
            InputError: shapes, dtypes or labels that do not fit the classes. (On a GPU labels are not read: the loss
                is NaN, or indexing fails.)
        """
        batch = checked_batch(embeddings, labels)
        self._check(batch.anchors, batch.labels)
        x, labels = batch.anchors, batch.labels
        if self.share is not None and self._processes is not None:
            x, labels = self._processes.gather(x), self._processes.gather(labels)
        # Else an infinite logit may cost nothing, and a negative label count from the last class.
        foreign = (labels < 0) | (labels >= (self.num_classes or 0))
        mark = torch.where(foreign, math.nan, x.detach().sum(1)).sum()
        with without_autocast(embeddings.device):  # 0 times a sum is 0 or NaN
            return torch.add(self.of_batch(ClassBatch(x, labels)), mark, alpha=0)

    def of_batch(self, batch: ClassBatch) -> Tensor:
        """The loss of checked input."""
        raise NotImplementedError

    def logits(
        self,
        batch: ClassBatch,
        scale: float,
        *,
        over: Literal["classes", "items"] = "classes",
        pool: Pool | None = None,
        normalize: bool = True,
        normalize_proxies: bool = True,
        wants_total: bool = False,
    ) -> tuple[Logits, int]:
        """Reductions of scale * (cosine of each item and class), and how many classes they are over.

        ``normalize``, ``normalize_proxies``: else rows are taken with their norms.
        """
        x = unit_rows(batch.embeddings) if normalize else batch.embeddings
        labels, processes = batch.labels, self._processes
        if self.share is not None:
            labels = self.share.local(labels)
        classes = self._drawn(labels)
        if classes is not None:
            labels = torch.where(labels >= 0, torch.searchsorted(classes, labels), -1)
        job = Job(
            labels,
            classes,
            scale,
            over,
            self.centers,
            pool,
            normalize_proxies,
            bounded=normalize and normalize_proxies and scale <= (60 if x.dtype == torch.float32 else 500),
            absent=math.nan if self.share is None else 0.0,
            wants_total=wants_total,
        )
        logits = class_logits(x, self.used_proxies(), job)
        compared = len(self.proxies) // self.centers if classes is None else len(classes)
        if processes is None:
            return logits, compared
        if self.share is not None:
            everywhere = processes.sum_(torch.tensor(compared, device=x.device))
            return joined(logits, processes, over), int(everywhere)
        if over == "items":
            others = logsumexp_of_all(logits.others, processes)
            logits = Logits(processes.gather(logits.own), others, logits.total)
        return logits, compared

    def used_proxies(self) -> Tensor:
        """The proxies at hand, to be computed with: their gradient comes out right when they are a share."""
        if self.share is None or self._processes is None:
            return self.proxies
        return own_gradient(self.proxies, self._processes)

    def mean(self, cost: Tensor) -> Tensor:
        """The mean of costs [N] over the items of all processes; 0 of none."""
        if self._processes is None or self.share is not None:
            return cost.sum() / max(len(cost), 1)
        count = self._processes.sum_(torch.tensor(len(cost), device=cost.device))
        return self._processes.sum(cost.sum()) / count.clamp_min(1)

    def _drawn(self, labels: Tensor) -> Tensor | None:
        """The classes of this step among those at hand, ascending; None for all. ``labels``: -1 for none of them."""
        if self.negative_fraction == 1 or not self.training:
            return None
        number, device, seed = int(self.draws), labels.device, self.seed
        self.draws += 1
        if self._processes is not None:
            if self.share is None:  # all draw alike, whatever items they have
                labels = self._processes.gather(labels)
            else:
                seed += self._processes.rank
        count = len(self.proxies) // self.centers
        place = torch.rand(count, generator=numbered_generator(seed, number, device), device=device)
        present = labels[labels >= 0].unique()
        place[present] = 2.0
        kept = max(int(self.negative_fraction * count), len(present), 1)
        return place.topk(kept).indices.sort().values

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.share is not None and self._processes is not None:
            with torch.no_grad():
                destination[prefix + "proxies"] = self._processes.gather(self.proxies)

    def _load_from_state_dict(self, state_dict, prefix: str, *args, **kwargs) -> None:
        name = prefix + "proxies"
        if self.share is not None and name in state_dict:
            given, wanted = len(state_dict[name]), (self.num_classes or 0) * self.centers
            if given != wanted:  # rows of it may fit nevertheless
                raise InputError(
                    f"the state to load has {given} proxies, this {self._name} has {wanted}. Build it with the classes "
                    "and centres that it was saved with."
                )
            state_dict[name] = state_dict[name][self.rows]  # of load_state_dict's own mapping
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if self.num_classes is None:
            raise InputError(
                f"{self._name} does not know its classes. Give `num_classes` and `dim`, or call set_classes first."
            )
        if embeddings.shape[1] != self.dim:
            raise InputError(
                f"`embeddings` have width {embeddings.shape[1]}, the proxies of {self._name} have width {self.dim}. "
                f"Build it with dim={embeddings.shape[1]}."
            )
        if embeddings.device != self.proxies.device:
            raise InputError(
                f"`embeddings` are on {embeddings.device}, the proxies on {self.proxies.device}. Move them with "
                "`loss.to(device)` before the optimiser is made."
            )
        check_class_labels(self._name, labels, self.num_classes)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        shown = f"num_classes={self.num_classes}, dim={self.dim}"
        if self.share is not None:
            shown += f", classes {self.share.start} to {self.share.stop - 1}"
        if self.negative_fraction < 1:
            shown += f", negative_fraction={self.negative_fraction}"
        return shown

"""Batches of few categories x their classes x instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deepmetric.data.planned import PlannedSampler, at_least_one, deal_members, decks
from deepmetric.errors import InputError


class HierarchicalSampler(PlannedSampler):
    """Batch sampler: each batch holds ``categories_per_batch`` distinct categories (super-classes), of each
    ``classes_per_category`` classes, of each class ``instances`` items.

    Classes of one category are each other's hardest negatives (bicycles among bicycles in Stanford Online Products),
    which batches of random classes seldom bring together. Categories are visited equally often, each before one
    returns, or with ``weight_categories`` in proportion to their number of classes, drawn anew for each batch. Within
    a category classes come from a shuffled deck, round and round; within a class so do items, as in
    :class:`MPerClassSampler`. A category with n < ``classes_per_category`` classes gives its n classes in rounds:
    they then have more items in the batch.

    An epoch has max(N // batch_size, ceil(C / classes in a batch)) batches.

    Several processes: rank r takes classes r, r + world_size, ... of a batch. State and resumption:
    :class:`PlannedSampler`.

    Args:
        labels: integer [N] array or tensor; positions are the indices that are yielded.
        categories: [N], the category of each item, of any type that can be sorted; all items of a class share it.
            None: to be set before the first batch (``sampler.categories = ...``), as a trainer does from its data.
        categories_per_batch, classes_per_category, instances: the shape of a batch, over all ranks.
        weight_categories: visit categories in proportion to their number of classes.
        seed, rank, world_size: see :class:`PlannedSampler`.

    Raises:
        InputError: data without categories, a class in two of them, fewer categories than a batch holds, classes that
            cannot be dealt evenly to ``world_size`` ranks, or arguments out of range.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | Tensor,
        categories: Sequence[str] | Sequence[int] | np.ndarray | None = None,
        categories_per_batch: int = 2,
        classes_per_category: int = 14,
        instances: int = 4,
        weight_categories: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        at_least_one(
            categories_per_batch=categories_per_batch,
            classes_per_category=classes_per_category,
            instances=instances,
        )
        self.categories_per_batch, self.classes_per_category = categories_per_batch, classes_per_category
        self.instances, self.weight_categories = instances, weight_categories
        super().__init__(
            labels, categories_per_batch * classes_per_category, instances, seed, rank, world_size
        )
        self._category_of: np.ndarray | None = None  # [C]
        if categories is not None:
            self.categories = categories

    @property
    def categories(self) -> np.ndarray | None:
        """int64 [N], the number of each item's category in sorted order; None while not set."""
        return None if self._category_of is None else self._category_of[self.class_of]

    @categories.setter
    def categories(self, categories: Sequence[str] | Sequence[int] | np.ndarray | None) -> None:
        if categories is None:
            raise InputError(
                "HierarchicalSampler needs categories, and the data has none. Take data that names them (a table's "
                "category column, a folder of folders), or MPerClassSampler"
            )
        names, of_item = np.unique(np.asarray(categories), return_inverse=True)
        if of_item.shape != self.class_of.shape:
            raise InputError(
                f"sampler: {len(of_item)} categories for {len(self.class_of)} items; expected one an item"
            )
        of_class = np.zeros(len(self.classes), dtype=np.int64)
        of_class[self.class_of] = of_item
        torn = np.flatnonzero(of_class[self.class_of] != of_item)
        if len(torn):
            raise InputError(
                f"sampler: the class with label {self.classes[self.class_of[torn[0]]]} has items in the categories "
                f"{names[of_item[torn[0]]]} and {names[of_class[self.class_of[torn[0]]]]}; expected one a class"
            )
        if len(names) < self.categories_per_batch:
            raise InputError(
                f"sampler: a batch of {self.categories_per_batch} categories needs as many, and the data has "
                f"{len(names)}. Set categories_per_batch to at most {len(names)}"
            )
        self._category_of = of_class

    def __len__(self) -> int:
        return max(len(self.class_of) // self.batch_size, -(-len(self.classes) // self.units))

    def _plan(self, generator: np.random.Generator) -> np.ndarray:
        if self._category_of is None:
            raise InputError("HierarchicalSampler has no categories yet: give `categories`, one an item")
        each, sizes = self.categories_per_batch, np.bincount(self._category_of)
        if self.weight_categories:
            # The largest of log-weights with Gumbel noise are draws without replacement (Efraimidis & Spirakis).
            keys = np.log(sizes) + generator.gumbel(size=(len(self), len(sizes)))
            visited = np.argsort(-keys, axis=1)[:, :each].reshape(-1)
        else:
            visited = decks(len(self) * each, len(sizes), each, generator)
        classes = deal_members(visited, self._category_of, self.classes_per_category, generator)
        return deal_members(classes.reshape(-1), self.class_of, self.instances, generator).reshape(
            len(self), -1
        )

    def _units_named(self) -> str:
        return f"categories_per_batch * classes_per_category = {self.units}"

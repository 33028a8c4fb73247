"""Post-processing by name, as the command line has it: ``whitening+query_expansion(k=3, alpha=2)``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from deepmetric.errors import InputError, did_you_mean
from deepmetric.evaluation.postprocessing.expansion import database_augmentation, query_expansion
from deepmetric.evaluation.postprocessing.k_reciprocal import KReciprocal
from deepmetric.evaluation.postprocessing.views import Views
from deepmetric.evaluation.postprocessing.whitening import Whitening

STEPS: dict[str, Callable[..., Any]] = {
    "views": Views,
    "whitening": Whitening,
    "database_augmentation": database_augmentation,
    "query_expansion": query_expansion,
    "k_reciprocal": KReciprocal,
}
"""In the order in which they are done: model, space, gallery, queries, ranking."""

_GIVEN = {"model", "training", "query", "gallery", "self_index"}  # what the evaluation itself hands over


class Chain(NamedTuple):
    """Steps by name with their arguments, and what whitening learned from."""

    steps: dict[str, dict[str, Any]]
    training: np.ndarray | None = None

    def model(self, model: Any) -> Any:
        """The model, or the model over several views."""
        return Views(model, **self.steps["views"]) if "views" in self.steps else model

    def apply(
        self, query: Any, gallery: Any, self_index: np.ndarray
    ) -> tuple[Any, Any, dict[str, KReciprocal]]:
        """New queries and gallery (None: the queries among themselves), and options of the metrics.

        Args:
            self_index: the row of each query in the gallery, -1 where it is not there.
        """
        steps = self.steps
        if "whitening" in steps:
            if self.training is None:
                raise InputError(
                    "whitening learns from the embeddings of the training items, and there are none."
                )
            whiten = Whitening(self.training, **steps["whitening"])
            query, gallery = whiten(query), None if gallery is None else whiten(gallery)
        rows = query if gallery is None else gallery
        if "database_augmentation" in steps:
            gallery = rows = database_augmentation(rows, **steps["database_augmentation"])
        if "query_expansion" in steps:
            query = query_expansion(query, rows, self_index=self_index, **steps["query_expansion"])
            gallery = rows
        options = {"similarity": KReciprocal(**steps["k_reciprocal"])} if "k_reciprocal" in steps else {}
        return query, gallery, options


def parse_chain(text: str) -> Chain:
    """``name`` or ``name(key=value, ...)``, several joined by ``+``, done in the order of :data:`STEPS`.

    Raises:
        InputError: text of another form, a name or an argument that is not known (with the nearest that is), a step
            named twice.

    >>> parse_chain("query_expansion(k=3) + whitening").steps
    {'whitening': {}, 'query_expansion': {'k': 3}}
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        calls = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            calls.append(node.right)
            node = node.left
        steps = [_step(call) for call in [node, *reversed(calls)]]
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"post-processing {text!r} cannot be read ({error}); expected for example whitening or "
            "'database_augmentation(k=3) + query_expansion(k=5, alpha=3)'."
        ) from error
    found = dict(steps)
    if len(found) < len(steps):
        raise InputError(f"post-processing {text!r} names a step twice; expected each once.")
    return Chain({name: found[name] for name in STEPS if name in found})


def _step(node: ast.expr) -> tuple[str, dict[str, Any]]:
    arguments = {}
    if isinstance(node, ast.Call):
        if node.args:
            raise ValueError("arguments are given by name")
        arguments = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in node.keywords}
        if len(arguments) < len(node.keywords):
            raise ValueError("an argument is given twice")
        node = node.func
    if not isinstance(node, ast.Name):
        raise ValueError("no name")
    if node.id not in STEPS:
        raise InputError(
            f"there is no post-processing {node.id!r}; there are {', '.join(STEPS)}.{did_you_mean(node.id, STEPS)}"
        )
    parameters = inspect.signature(STEPS[node.id], eval_str=True).parameters
    takes = {name: parameter.annotation for name, parameter in parameters.items() if name not in _GIVEN}
    for name, value in arguments.items():
        if name not in takes:
            raise InputError(
                f"{node.id} takes {', '.join(sorted(takes))}, not {name!r}.{did_you_mean(name, takes)}"
            )
        kind = takes[name] if takes[name] is not float else float | int
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(
                f"`{name}` of {node.id} is {value!r}; expected {getattr(kind, '__name__', kind)}."
            )
    return node.id, arguments

"""The values that `deepmetric tune` may choose: dotted recipe key -> range or choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepmetric.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def distributions(search: dict[str, Any], where: str) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each key.

    ``{low, high}`` of two whole numbers (with a whole ``step``) is a range of whole numbers, otherwise of floats;
    ``log: true`` searches evenly in the logarithm, ``step`` in steps. ``{choices: [...]}`` is a list of numbers, words,
    booleans and null.

    Raises:
        InputError: none of these, or a range that is empty.
    """
    return {key: _distribution(given, f"`search.{key}` of {where}") for key, given in search.items()}


def _distribution(given: Any, where: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = ("low", "high", "log", "step", "choices")
    if not isinstance(given, dict) or not given:
        raise InputError(
            f"{where} is {given!r}; expected {{low, high}}, with log or step if wanted, or {{choices}}."
        )
    for key in given:
        if key not in known:
            raise InputError(
                f"{where} has no key {key!r}, only {', '.join(known)}.{did_you_mean(str(key), known)}"
            )
    if "choices" in given:
        choices = given["choices"]
        plain = isinstance(choices, list) and all(
            choice is None or isinstance(choice, (bool, int, float, str)) for choice in choices
        )
        if not choices or not plain or len(given) > 1:
            raise InputError(
                f"{where} is {given!r}; `choices` must be a list of numbers, words, true, false, null; it stands alone."
            )
        return CategoricalDistribution(choices)
    if "low" not in given or "high" not in given:
        raise InputError(f"{where} needs both `low` and `high`, or `choices`; got {given!r}.")
    low, high = (_number(given[end], where) for end in ("low", "high"))
    log = bool(given.get("log", False))
    step = None if given.get("step") is None else _number(given["step"], where)
    if not low < high or (log and (low <= 0 or step is not None)) or (step is not None and step <= 0):
        raise InputError(
            f"{where}: low {low} must be below high {high}, `step` above 0; with `log` low must be above 0 and there "
            "is no `step`."
        )
    if isinstance(low, int) and isinstance(high, int) and not isinstance(step, float):
        return IntDistribution(low, high, log=log, step=1 if step is None else step)
    return FloatDistribution(low, high, log=log, step=step)


def _number(value: Any, where: str) -> int | float:
    # YAML 1.1 reads 1e-6, without a dot, as a word
    try:
        if not isinstance(value, bool):
            return value if isinstance(value, (int, float)) else float(value)
    except (TypeError, ValueError):
        pass
    raise InputError(f"{where}: {value!r} is not a number.")


def example(distribution: BaseDistribution) -> Any:
    """One value of it, to see whether a recipe takes the key."""
    return getattr(distribution, "choices", (getattr(distribution, "high", None),))[0]


def as_recipe(chosen: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as a recipe that goes over others.

    >>> whole = {"loss": {"class_path": "L", "init_args": {"margin": 0.1, "scale": 1}}}
    >>> as_recipe({"loss.margin": 0.2}, whole)
    {'loss': {'init_args': {'margin': 0.2}}}
    >>> as_recipe({"loss.margin": 0.2, "loss": "M"}, whole)
    {'loss': {'init_args': {'margin': 0.2}, 'class_path': 'M'}}
    """
    tree: dict[str, Any] = {}
    for key, value in chosen.items():
        at, node = tree, recipe
        *parents, last = (word for word in key.split(".") if word != "init_args")
        for word in parents:
            at, node = at.setdefault(word, {}), node[word]
            if isinstance(node, dict) and "class_path" in node:
                at, node = at.setdefault("init_args", {}), node["init_args"]
        if isinstance(node.get(last), dict) and "class_path" in node[last]:
            at.setdefault(last, {})["class_path"] = value  # its arguments may be chosen too
        else:
            at[last] = value
    return tree

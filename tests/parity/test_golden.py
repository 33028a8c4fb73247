"""Our losses against the recorded numbers of other implementations, in float64.

The folder is that of GOLDEN_DIR, by default shared/golden beside the checkout. Another folder with the same
case ids and other numbers must pass too: parameters come from the case, through the adapters.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _beside(name: str) -> ModuleType:
    """The module ``name`` of this folder (tests are no package, so it cannot be imported by name)."""
    spec = importlib.util.spec_from_file_location(f"parity_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases, adapters = _beside("cases"), _beside("adapters")
NAMES = cases.names()
needs_cases = pytest.mark.skipif(not NAMES, reason=f"no golden cases in {cases.FOLDER} (set GOLDEN_DIR)")


@needs_cases
@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    reason = adapters.reason_to_skip(*name.split("/"))
    if reason:
        pytest.skip(reason)
    case = cases.Case(cases.read(name))
    try:
        value = adapters.ADAPTERS[case.system, case.variant](case)
    except adapters.NotOffered as reason:
        pytest.skip(f"not offered: {reason}")
    if "probabilities" in case.fields:  # a sampling table instead of a loss
        wanted = torch.tensor(case.fields["probabilities"], dtype=torch.float64)
        torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-12)
        return
    if case.fields["kind"] == "miner":  # sets of indices
        assert value == {kept: {tuple(indices) for indices in case.fields[kept]} for kept in value}
        return
    value.backward()

    wanted = torch.tensor(float(case.expected["loss"]), dtype=torch.float64)
    torch.testing.assert_close(value.detach(), wanted, **case.tolerance("loss"))
    leaves = {
        "embeddings": case.embeddings,
        "ref": case.ref_embeddings,
        "beta": case.beta,
        "proxies": case.proxies,
    }
    for leaf_name, leaf in leaves.items():
        gradient = case.expected_gradient(leaf_name)
        if gradient is not None:
            torch.testing.assert_close(leaf.grad, gradient, **case.tolerance("gradients"))


@needs_cases
def test_enough_of_each_system_passes() -> None:
    """At least 85% of the cases of every system that has a loss here are compared, 90% of all together."""
    compared, present = {}, {}
    for name in NAMES:
        system, *rest = name.split("/")
        if any(system == known for known, _ in adapters.ADAPTERS):
            present[system] = present.get(system, 0) + 1
            skipped = adapters.reason_to_skip(system, *rest) is not None
            compared[system] = compared.get(system, 0) + (not skipped)
    few = {
        system: f"{compared[system]} of {n}" for system, n in present.items() if compared[system] < 0.85 * n
    }
    assert not few
    assert sum(compared.values()) >= 0.9 * sum(present.values())


@needs_cases
def test_no_entry_is_idle() -> None:
    """Every adapter and every exception speaks of a case that exists."""
    present = {tuple(name.split("/")) for name in NAMES}
    systems = {case[0] for case in present}
    present |= {case[:2] for case in present}
    assert set(adapters.ADAPTERS) <= present
    assert set(adapters.NOT_OFFERED) <= present
    assert not set(adapters.ADAPTERS) & set(adapters.NOT_OFFERED)
    assert set(adapters.NOT_YET) == systems - {system for system, _ in adapters.ADAPTERS}

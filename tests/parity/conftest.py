"""The table that the golden comparison prints at its end."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            _, _, case = report.nodeid.partition("test_golden.py::test_golden[")
            if case and "/" in case:
                kind = outcome
                if outcome == "skipped":
                    kind = "not offered" if "not offered: " in str(report.longrepr) else "other"
                outcomes.setdefault(case.split("/")[0], Counter())[kind] += 1
    if not outcomes:
        return
    columns = ("passed", "failed", "not offered", "other")
    terminalreporter.section("golden cases")
    terminalreporter.write_line(f"{'system':<28}" + "".join(f"{column:>12}" for column in columns))
    for system, counts in [*sorted(outcomes.items()), ("all", sum(outcomes.values(), Counter()))]:
        if counts["other"] < counts.total() or system == "all":
            terminalreporter.write_line(f"{system:<28}" + "".join(f"{counts[c]:>12}" for c in columns))
    terminalreporter.write_line("other: no such part yet, or compared elsewhere")

"""The same rows as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from deepmetric.benchmark.compare import Pair, Row
from deepmetric.benchmark.scores import METRICS

TITLES = {"precision@1": "P@1", "r_precision": "R-precision", "map@r": "MAP@R"}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def score_table(rows: list[Row], what: str) -> str:
    """Markdown, in percent; ``what`` the means are of: models or seeds."""
    classes = any(row.classes for row in rows)
    header = ["system", *TITLES.values(), *(["MAP@R over test classes"] if classes else []), what]
    lines = []
    for row in rows:
        line = [row.system, *(_value(row.values[metric]) for metric in METRICS)]
        if classes:
            line.append(
                "" if row.classes is None else f"{100 * row.classes[0]:.2f} to {100 * row.classes[1]:.2f}"
            )
        lines.append([*line, str(row.number)])
    return markdown(header, lines)


def pair_table(pairs: list[Pair]) -> str:
    """Markdown: row minus column in points of MAP@R, a star where Holm's p is below 0.05."""
    names = list(dict.fromkeys([pair.first for pair in pairs] + [pair.second for pair in pairs]))
    cells = {
        (pair.first, pair.second): f"{100 * pair.difference:+.2f}{'*' if pair.differs else ''}"
        for pair in pairs
    }
    rows = [[a, *(cells.get((a, b), "") for b in names[1:])] for a in names[:-1]]
    return markdown(["", *names[1:]], rows)


def latex(rows: list[Row], caption: str) -> str:
    """A table for booktabs, in percent."""
    lines = [
        r"\begin{table}",
        rf"  \caption{{{_escaped(caption)}}}",
        r"  \centering",
        r"  \begin{tabular}{l" + "r" * len(METRICS) + "}",
        r"    \toprule",
        "    system & " + " & ".join(TITLES.values()) + r" \\",
        r"    \midrule",
    ]
    for row in rows:
        values = " & ".join(f"${_value(row.values[metric], chr(92) + 'pm')}$" for metric in METRICS)
        lines.append(rf"    {_escaped(row.system)} & {values} \\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def score_records(data: str, kind: str, rows: list[Row]) -> list[dict[str, Any]]:
    """Lines of results.csv, as fractions."""
    records = []
    for row in rows:
        record: dict[str, Any] = {"data": data, "embedding": kind, "system": row.system, "values": row.number}
        for metric in METRICS:
            record[metric], record[f"{metric} ±"] = row.values[metric]
        record["map@r classes low"], record["map@r classes high"] = row.classes or ("", "")
        records.append(record)
    return records


def pair_records(data: str, kind: str, pairs: list[Pair]) -> list[dict[str, Any]]:
    """Lines of significance.csv, as fractions."""
    return [
        {
            "data": data,
            "embedding": kind,
            "first": pair.first,
            "second": pair.second,
            "map@r difference": pair.difference,
            "p": pair.p,
            "p holm": pair.adjusted,
        }
        for pair in pairs
    ]


def as_csv(records: list[dict[str, Any]]) -> str:
    """Columns in the order in which they first appear; no number is an empty field."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for record in records for key in record))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: "" if _is_nan(value) else value for key, value in record.items()})
    return text.getvalue()


def _value(pair: tuple[float, float], sign: str = "±") -> str:
    mean, half = pair
    return f"{100 * mean:.2f}" + ("" if math.isnan(half) else f" {sign} {100 * half:.2f}")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _escaped(text: str) -> str:
    for letter in "&%$#_{}":
        text = text.replace(letter, "\\" + letter)
    return text

"""A run's figures beside those of the system's paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepmetric.training.recipe import Published


def published_table(scores: Mapping[str, float], published: Sequence[Published]) -> str:
    """A line for the run and one for each published row of the data set, in per cent; "-" where a figure is missing.

    >>> from deepmetric.training import Published
    >>> paper = Published("CUB-200-2011", "BN-Inception, 512-d", "Wang et al., CVPR 2019", {"recall@1": 65.7})
    >>> print(published_table({"recall@1": 0.6512, "recall@2": 0.7}, [paper]))
    published, per cent  recall@1  source
    this run                 65.1
    BN-Inception, 512-d      65.7  Wang et al., CVPR 2019
    """
    names = list(dict.fromkeys(name for row in published for name in row.scores))
    rows = [("published, per cent", names, "source")]
    ours = [f"{100 * scores[name]:.1f}" if name in scores else "-" for name in names]
    rows.append(("this run", ours, ""))
    for row in published:
        theirs = [f"{row.scores[name]:.1f}" if name in row.scores else "-" for name in names]
        rows.append((row.model, theirs, row.source))
    width = max(len(title) for title, _, _ in rows)
    lines = []
    for title, cells, source in rows:
        columns = [f"{cell:>{len(name)}}" for cell, name in zip(cells, names)]
        lines.append("  ".join([f"{title:<{width}}", *columns, source]).rstrip())
    return "\n".join(lines)

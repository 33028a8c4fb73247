"""MAP@R by system, with its intervals."""

from __future__ import annotations

import math
from pathlib import Path

from deepmetric.benchmark.compare import Row

# Okabe and Ito's blue and vermilion: told apart with any colour vision; the marks differ too.
STYLE = {"separated": ("#0072B2", "o"), "concatenated": ("#D55E00", "D")}


def draw(file: Path, data: str, separated: list[Row], concatenated: list[Row]) -> None:
    """Write a PNG or an SVG, as ``file`` is called: a line a system, the best separated MAP@R at the top."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = {row.system: -i for i, row in enumerate(separated)}
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(order)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for kind, rows in (("separated", separated), ("concatenated", concatenated)):
        colour, mark = STYLE[kind]
        for row in rows:
            mean, half = row.values["map@r"]
            ends = row.classes or (mean - half, mean + half)
            if not math.isnan(ends[0]):
                axes.plot([100 * end for end in ends], [order[row.system]] * 2, color=colour, lw=1.5)
        axes.plot(
            [100 * row.values["map@r"][0] for row in rows],
            [order[row.system] for row in rows],
            mark,
            color=colour,
            markersize=5,
            label=f"{kind}, interval over {'test classes' if kind == 'concatenated' else 'models'}",
        )
    axes.set_yticks(list(order.values()), list(order))
    axes.set_xlabel("MAP@R on the test classes, %")
    axes.set_title(data)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    # Without a date, and with fixed ids, the same numbers give the same file.
    with mpl.rc_context({"svg.hashsalt": "deepmetric"}):
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)

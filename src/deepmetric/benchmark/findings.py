"""What a table says, in sentences made from its numbers."""

from __future__ import annotations

from deepmetric.benchmark.compare import Pair, Row


def findings(separated: list[Row], pairs: list[Pair], concatenated: list[Row]) -> str:
    """Best and worst system, which of them cannot be told from the best, and what the ensemble adds."""
    if len(separated) < 2:
        return ""
    best, worst = separated[0], separated[-1]
    text = (
        f"Each model alone, {best.system} has the highest MAP@R, {_percent(best)}, and {worst.system} the lowest, "
        f"{_percent(worst)}."
    )
    beside = [pair for pair in pairs if pair.first == best.system]
    level = [pair.second for pair in beside if not pair.differs]
    told = sum(pair.differs for pair in pairs)
    if level:
        text += f" Not told from {best.system}: {', '.join(level)}."
    elif beside:
        text += f" {best.system} differs from every other system."
    if pairs:
        text += f" Of {len(pairs)} pairs of systems, {told} differ."
    alone = {row.system: row.values["map@r"][0] for row in separated}
    gains = [row.values["map@r"][0] - alone[row.system] for row in concatenated]
    if gains:
        text += (
            f" The folds' embeddings side by side have {100 * min(gains):+.2f} to {100 * max(gains):+.2f} points over "
            "the mean of their models."
        )
    return text


def _percent(row: Row) -> str:
    return f"{100 * row.values['map@r'][0]:.2f}%"

"""Pair losses as one streamed operator; README.md beside this file tells why it is built as it is."""

from __future__ import annotations

from deepmetric.losses.streamed.comparison import Comparison
from deepmetric.losses.streamed.listed import PairList
from deepmetric.losses.streamed.processes import Processes
from deepmetric.losses.streamed.side import Side

__all__ = ["Comparison", "PairList", "Processes", "Side"]

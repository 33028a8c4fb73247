"""A controller of how hard mined negatives are."""

from __future__ import annotations

from deepmetric.errors import InputError


class HardnessController:
    """Keeps a signal at its target by an offset in [0, 1]: 0 takes the hardest negatives, 1 the easiest.

    Integral control with clipping on a smoothed signal: each :meth:`observe` moves a running mean,
    mean ← s · mean + (1 - s) · signal, and each :meth:`update` the offset, offset ← clip(offset + gain · (mean -
    target), 0, 1). A signal that grows with hardness (the fraction of triplets that cost something) thus makes
    negatives easier while it is above its target and harder while it is below.

    Args:
        target: of the signal.
        gain: change of the offset an update, for a deviation of 1.
        smoothing: s in [0, 1); 0 follows the last signal alone.
        offset: to begin with.

    Raises:
        InputError: numbers out of range.
    """

    def __init__(
        self, target: float = 0.5, gain: float = 0.5, smoothing: float = 0.9, offset: float = 0.5
    ) -> None:
        if gain <= 0 or not 0 <= smoothing < 1 or not 0 <= offset <= 1:
            raise InputError(
                f"HardnessController: gain={gain} must be above 0, smoothing={smoothing} in [0, 1) and "
                f"offset={offset} in [0, 1]"
            )
        self.target, self.gain, self.smoothing, self.offset = target, gain, smoothing, offset
        self.mean = target  # until something was observed there is nothing to correct

    def observe(self, signal: float) -> None:
        """Take note of the signal of one step."""
        self.mean = self.smoothing * self.mean + (1 - self.smoothing) * signal

    def update(self) -> None:
        """Move the offset by the deviation of the running mean."""
        self.offset = min(1.0, max(0.0, self.offset + self.gain * (self.mean - self.target)))

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "offset": self.offset}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean, self.offset = state["mean"], state["offset"]

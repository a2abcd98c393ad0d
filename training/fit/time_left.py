"""How long the rest of a run takes, from what was measured in this run."""

from __future__ import annotations

from collections.abc import Mapping

from training.progress import short_time

FEATURES_TO_EPOCH = 2.0
"""An epoch of the whole network takes about so many times as long as computing the features.

It is a guess that holds until the first such epoch was timed. MobileNetV2 took 1.8 times as long on
two quiet CPU cores: benchmarks/train_hymenoptera.py."""


class TimeLeft:
    """Adds up the epochs that are left in each phase."""

    def __init__(self, epochs_left: Mapping[str, int]) -> None:
        """*epochs_left* of each phase by its name, in order."""
        self._left = dict(epochs_left)
        self._epoch_s: dict[str, float] = {}

    def features_done(self, phase: str, seconds: float) -> None:
        """The features of *phase* took *seconds*; its epochs take next to nothing."""
        guess_s = FEATURES_TO_EPOCH * seconds
        self._epoch_s = dict.fromkeys(self._left, guess_s) | {phase: 0.0}

    def epoch_done(self, phase: str, seconds: float) -> None:
        """An epoch of *phase* took *seconds*, with its validation."""
        self._left[phase] -= 1
        self._epoch_s[phase] = seconds

    @property
    def seconds(self) -> float | None:
        """What is left of the run. None where nothing was measured that tells."""
        left_s = 0.0
        for phase, epochs in self._left.items():
            if epochs and phase not in self._epoch_s:
                return None
            left_s += epochs * self._epoch_s.get(phase, 0.0)
        return left_s

    def __str__(self) -> str:
        """Such as `  4 min left`; empty if unknown, or below a second."""
        left_s = self.seconds
        return f"  {short_time(left_s)} left" if left_s and left_s >= 1.0 else ""

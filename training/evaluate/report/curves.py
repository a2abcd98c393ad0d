"""The training curves as inline SVG: losses and accuracy by epoch, with the kept epoch marked.

Colours come from the page's style. Lines differ in dashes too, for those who see colours otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from training.evaluate.report.history import Epoch, History

WIDTH, HEIGHT = 380, 272
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 24, 38
"""Above the plot is room for what is marked in it."""
MOST_DOTS = 40
"""Up to so many epochs are dots on the line too."""

Points = list[tuple[int, float]]


class _Scale:
    """Epochs along the bottom, values of *low* to *high* up the side."""

    def __init__(self, epochs: Sequence[Epoch], low: float, high: float) -> None:
        self._first, self._last = epochs[0].epoch, epochs[-1].epoch
        self.low, self.high = low, high

    def x(self, epoch: float) -> float:
        share = (epoch - self._first) / max(1, self._last - self._first)
        return LEFT + (share if self._last > self._first else 0.5) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - BOTTOM - TOP)

    def curve(self, points: Points, kind: str) -> str:
        """A line through *points*, with dots where there are few of them."""
        places = [(self.x(epoch), self.y(value)) for epoch, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = "".join(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places
        )
        return (
            f'<polyline class="{kind}" points="{path}"/>{dots if len(points) <= MOST_DOTS else ""}'
        )

    def frame(self, body: Iterable[str], *, written: Callable[[float], str], words: str) -> str:
        """*body* on a grid, the epochs below it."""
        heights = [self.low + (self.high - self.low) * part / 4 for part in range(5)]
        lines = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(value):.1f}"'
            f' y2="{self.y(value):.1f}"/><text x="{LEFT - 6}" y="{self.y(value) + 4:.1f}"'
            f' text-anchor="end">{written(value)}</text>'
            for value in heights
        )
        ticks = "".join(
            f'<text x="{self.x(epoch):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{epoch}</text>'
            for epoch in _ticks(self._first, self._last)
        )
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{lines}'
            f'{"".join(body)}{ticks}<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}"'
            ' text-anchor="middle">epoch</text></svg>'
        )

    def kept(self, epoch: int) -> str:
        """A vertical line at the kept epoch, with its name."""
        x = self.x(epoch)
        anchor = "end" if x > WIDTH / 2 else "start"
        return (
            f'<line class="kept" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text x="{x:.1f}" y="{TOP - 9}" text-anchor="{anchor}">kept: {epoch}</text>'
        )

    def cut_off(self, kept: int) -> str:
        """Says above the plot that values are higher than the scale, away from the kept epoch."""
        left = self.x(kept) > WIDTH / 2
        x, anchor = (LEFT, "start") if left else (WIDTH - RIGHT, "end")
        text = "higher values are cut off"
        return f'<text x="{x}" y="{TOP - 9}" text-anchor="{anchor}">{text}</text>'


def loss_chart(history: History) -> str:
    """The loss on training and on validation images, by epoch."""
    val = [(one.epoch, one.val_loss) for one in history.epochs if one.val_loss is not None]
    values = [one.train_loss for one in history.epochs] + [value for _, value in val]
    scale = _Scale(history.epochs, 0.0, _highest(values))
    body = [*_phases(scale, history.epochs), scale.kept(history.kept)]
    body += [
        scale.curve([(one.epoch, one.train_loss) for one in epochs], "train")
        for _, epochs in _by_phase(history.epochs)
    ]
    body += [scale.curve(val, "val")] if val else []
    if max(values) > scale.high:
        body.append(scale.cut_off(history.kept))
    words = "Loss on training and validation images by epoch"
    return scale.frame(body, written=lambda value: f"{value:.2g}", words=words)


def accuracy_chart(history: History) -> str:
    """The accuracy on validation images, which chose the epoch."""
    points = [(one.epoch, one.val_accuracy) for one in history.epochs]
    least = min(value for _, value in points)
    floor = next(low for low in (0.9, 0.8, 0.6, 0.4, 0.2, 0.0) if low <= max(0.0, least - 0.01))
    scale = _Scale(history.epochs, floor, 1.0)
    body = [*_phases(scale, history.epochs), scale.kept(history.kept), scale.curve(points, "val")]
    words = "Accuracy on validation images by epoch"
    return scale.frame(body, written=lambda value: f"{100 * value:.4g}%", words=words)


def _by_phase(epochs: Sequence[Epoch]) -> list[tuple[str, list[Epoch]]]:
    """Each phase with its epochs, in order."""
    found = itertools.groupby(epochs, key=lambda one: one.phase)
    return [(phase, list(of_phase)) for phase, of_phase in found]


def _phases(scale: _Scale, epochs: Sequence[Epoch]) -> list[str]:
    """A line where the whole network begins to train, with what trains on both sides."""
    first, *later = _by_phase(epochs)
    if not later:
        return []
    x, y = scale.x(first[1][-1].epoch + 0.5), HEIGHT - BOTTOM - 6
    return [
        f'<line class="ideal" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text class="tiny" x="{x - 5:.1f}" y="{y}" text-anchor="end">head</text>',
        f'<text class="tiny" x="{x + 5:.1f}" y="{y}">network</text>',
    ]


def _highest(losses: Sequence[float]) -> float:
    """The top of the scale. A few wild epochs must not press all others to the ground."""
    values = sorted(value for value in losses if math.isfinite(value))
    usual = values[int(0.9 * (len(values) - 1))]
    return _round_up(min(values[-1], 4.0 * usual) if usual > 0.0 else values[-1])


def _round_up(value: float) -> float:
    """A round number of at least *value*, so that the grid has round ones too."""
    if value <= 0.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * part for part in (1, 2, 4, 8, 10) if power * part >= value)


def _ticks(first: int, last: int) -> list[int]:
    """About six epochs to write below the chart, the last one always."""
    step = max(1, math.ceil((last - first) / 6))
    return [*(tick for tick in range(first, last, step) if last - tick >= step / 2), last]

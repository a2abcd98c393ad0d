"""Charts of the report as inline SVG, without script, font or file.

Colours come from the page's style, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.evaluate.calibration import AbstentionPoint, Bin, Reliability

WIDTH, HEIGHT = 380, 300
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 10, 40
COUNTS_HEIGHT = 52
"""Of the strip below the reliability diagram that shows how many images each bin has."""
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class _Plane:
    """A rectangle with a horizontal scale of 0 to 1 and a vertical one of `floor` to 1."""

    floor: float = 0.0
    base: int = HEIGHT - BOTTOM
    """Vertical place of `floor`."""

    def x(self, share: float) -> float:
        """Horizontal place of *share*."""
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        """Vertical place of *share*."""
        return self.base - (share - self.floor) / (1.0 - self.floor) * (self.base - TOP)

    def line(self, places: Iterable[tuple[float, float]], kind: str) -> str:
        """A line through *places*, as shares."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in places)
        return f'<polyline class="{kind}" points="{path}"/>'

    def dot(self, x: float, y: float, kind: str, radius: int) -> str:
        """A dot at *x* and *y*, as shares."""
        return f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}"/>'

    def chart(self, body: Iterable[str], *, below: str, words: str) -> str:
        """*body* on a grid with percentages along both sides, with *below* under it.

        *words* describe the chart for those who cannot see it.
        """
        heights = [self.floor + (1.0 - self.floor) * quarter for quarter in QUARTERS]
        grid = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(share):.1f}"'
            f' y2="{self.y(share):.1f}"/><text x="{LEFT - 6}" y="{self.y(share) + 4:.1f}"'
            f' text-anchor="end">{100.0 * share:.4g}%</text>'
            for share in heights
        )
        shares = "".join(
            f'<text x="{self.x(share):.1f}" y="{HEIGHT - 22}"'
            f' text-anchor="{"end" if share == 1.0 else "middle"}">{share:.0%}</text>'
            for share in QUARTERS
        )
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{grid}'
            f'{"".join(body)}{shares}<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}"'
            f' text-anchor="middle">{below}</text></svg>'
        )


def reliability_chart(served: Reliability, raw: Reliability) -> str:
    """Accuracy by confidence as *served*, and *raw*, before the temperature.

    Below is the number of images in each bin.
    """
    plane = _Plane(base=HEIGHT - BOTTOM - COUNTS_HEIGHT)
    most = max(part.count for part in served.bins)
    body = [plane.line([(0.0, 0.0), (1.0, 1.0)], "ideal")]
    body += [_bar(plane, part, most) for part in served.bins]
    if raw.temperature != served.temperature:
        places = [(part.confidence, part.accuracy.value) for part in raw.bins]
        body += [plane.line(places, "raw"), *(plane.dot(x, y, "raw", 3) for x, y in places)]
    words = "Reliability diagram: accuracy by confidence, and images in each bin"
    return plane.chart(body, below="confidence", words=words)


def abstention_chart(points: Sequence[AbstentionPoint], *, threshold: float) -> str:
    """Accuracy of the answered images by the share answered, with a dot at *threshold*."""
    lowest = min(point.accuracy for point in points)
    # At least a hundredth of headroom below the curve, and a scale that ends in a round number.
    floors = (0.96, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
    plane = _Plane(floor=next(floor for floor in floors if floor <= max(lowest - 0.01, 0.0)))
    body = [plane.line([(point.answered, point.accuracy) for point in points], "curve")]
    answered = [point for point in points if point.threshold >= threshold]
    body += [plane.dot(point.answered, point.accuracy, "now", 5) for point in answered[-1:]]
    words = "Abstention curve: accuracy of the answered images by the share answered"
    return plane.chart(body, below="share of the images answered", words=words)


def compact(count: int) -> str:
    """*count* in four characters or fewer: 950, 1.2k, 34k, 5.6M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.1f}{letter}" if scaled < 9.95 else f"{scaled:.0f}{letter}"
    return str(count)


def _bar(plane: _Plane, part: Bin, most: int) -> str:
    """A bar as high as the accuracy with a whisker for its interval.

    Below the plane is the number of images with a small bar, relative to *most*.
    """
    left, right = plane.x(part.low) + 1, plane.x(part.high) - 1
    middle, width, accuracy = (left + right) / 2, right - left, part.accuracy
    top, foot = plane.y(accuracy.value), plane.base + COUNTS_HEIGHT - 4
    height = max(1.0, (COUNTS_HEIGHT - 20) * part.count / most)
    words = (
        f"{part.count} images at a mean confidence of {part.confidence:.1%}:"
        f" {accuracy.value:.1%} right"
    )
    return (
        f'<g><title>{words}</title><rect class="bar" x="{left:.1f}" y="{top:.1f}"'
        f' width="{width:.1f}" height="{plane.base - top:.1f}"/><line class="whisker"'
        f' x1="{middle:.1f}" x2="{middle:.1f}" y1="{plane.y(accuracy.low):.1f}"'
        f' y2="{plane.y(accuracy.high):.1f}"/></g><rect class="count" x="{left:.1f}"'
        f' y="{foot - height:.1f}" width="{width:.1f}" height="{height:.1f}"/><text class="tiny"'
        f' x="{middle:.1f}" y="{foot - height - 3:.1f}" text-anchor="middle">'
        f"{compact(part.count)}</text>"
    )

"""Charts of the report as inline SVG: no script, no font, no file; colours come from the page's
style, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluate.calibration import AbstentionPoint, Bin, Reliability

WIDTH, HEIGHT = 380, 300
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 10, 40
COUNTS_HEIGHT = 52
"""Of the strip below the reliability diagram that shows how many images each bin has."""


class _Plane:
    """A rectangle with a horizontal scale of 0 to 1 and a vertical one of *floor* to 1."""

    def __init__(self, *, floor: float = 0.0, bottom: int = BOTTOM) -> None:
        self.floor = floor
        self.base = HEIGHT - bottom

    def x(self, share: float) -> float:
        """Horizontal place of *share*."""
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        """Vertical place of *share*."""
        return self.base - (share - self.floor) / (1.0 - self.floor) * (self.base - TOP)

    def grid(self) -> str:
        """Lines and their percentages along both sides."""
        marks = []
        for step in range(5):
            share = self.floor + (1.0 - self.floor) * step / 4
            place = self.y(share)
            marks.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}"'
                f' y2="{place:.1f}"/>'
            )
            marks.append(
                f'<text x="{LEFT - 6}" y="{place + 4:.1f}"'
                f' text-anchor="end">{_percent(share)}</text>'
            )
        return "".join(marks)

    def shares_below(self, y: float) -> str:
        """Percentages of the horizontal scale at height *y*."""
        places = [(step / 4, "end" if step == 4 else "middle") for step in range(5)]
        return "".join(
            f'<text x="{self.x(share):.1f}" y="{y}" text-anchor="{anchor}">{share:.0%}</text>'
            for share, anchor in places
        )


def reliability_chart(served: Reliability, raw: Reliability) -> str:
    """Accuracy by confidence as served, with intervals, and *raw*, before the temperature; below,
    how many images each bin has.
    """
    plane = _Plane(bottom=BOTTOM + COUNTS_HEIGHT)
    most = max(part.count for part in served.bins)
    body = [plane.grid(), _line(plane, [(0.0, 0.0), (1.0, 1.0)], "ideal")]
    body += [_bar(plane, part) for part in served.bins]
    if raw.temperature != served.temperature:
        body.append(
            _line(plane, [(part.confidence, part.accuracy.value) for part in raw.bins], "raw")
        )
        body += [
            f'<circle class="raw" cx="{plane.x(b.confidence):.1f}"'
            f' cy="{plane.y(b.accuracy.value):.1f}" r="3"/>'
            for b in raw.bins
        ]
    body += [_count(plane, part, most) for part in served.bins]
    body += [plane.shares_below(HEIGHT - 22), _below("confidence")]
    return _svg(
        "Reliability diagram: accuracy by confidence, and images in each bin", "".join(body)
    )


def abstention_chart(points: Sequence[AbstentionPoint], *, threshold: float) -> str:
    """Accuracy of the answered images by the share answered; a dot where the model's own threshold
    lies.
    """
    lowest = min(point.accuracy for point in points)
    # At least a hundredth of headroom below the curve, and a scale that ends in a round number.
    floor = next(
        floor for floor in (0.96, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0) if floor <= max(lowest - 0.01, 0.0)
    )
    plane = _Plane(floor=floor)
    body = [
        plane.grid(),
        _line(plane, [(point.answered, point.accuracy) for point in points], "curve"),
    ]
    kept = [point for point in points if point.threshold >= threshold]
    if kept:
        body.append(
            f'<circle class="now" cx="{plane.x(kept[-1].answered):.1f}"'
            f' cy="{plane.y(kept[-1].accuracy):.1f}" r="5"/>'
        )
    body += [plane.shares_below(HEIGHT - 22), _below("share of the images answered")]
    return _svg(
        "Abstention curve: accuracy of the answered images by the share answered", "".join(body)
    )


def compact(count: int) -> str:
    """*count* in four characters or fewer: 950, 1.2k, 34k, 5.6M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.1f}{letter}" if scaled < 9.95 else f"{scaled:.0f}{letter}"
    return str(count)


def _bar(plane: _Plane, part: Bin) -> str:
    """A bar as high as the accuracy, a whisker for its interval, and a tick where the mean
    confidence would have it.
    """
    left, right, middle = (
        plane.x(part.low) + 1,
        plane.x(part.high) - 1,
        plane.x((part.low + part.high) / 2),
    )
    top, low, high = (
        plane.y(part.accuracy.value),
        plane.y(part.accuracy.low),
        plane.y(part.accuracy.high),
    )
    words = (
        f"{part.count} images at a mean confidence of {part.confidence:.1%}:"
        f" {part.accuracy.value:.1%} right"
    )
    return (
        f'<g><title>{words}</title><rect class="bar" x="{left:.1f}" y="{top:.1f}"'
        f' width="{right - left:.1f}" height="{plane.base - top:.1f}"/><line class="whisker"'
        f' x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}"/></g>'
    )


def _count(plane: _Plane, part: Bin, most: int) -> str:
    """A small bar and a number below the plane."""
    left, right = plane.x(part.low) + 1, plane.x(part.high) - 1
    room = COUNTS_HEIGHT - 20
    height = max(1.0, room * part.count / most)
    base = plane.base + COUNTS_HEIGHT - 4
    return (
        f'<rect class="count" x="{left:.1f}" y="{base - height:.1f}" width="{right - left:.1f}"'
        f' height="{height:.1f}"/><text class="tiny" x="{(left + right) / 2:.1f}"'
        f' y="{base - height - 3:.1f}" text-anchor="middle">{compact(part.count)}</text>'
    )


def _line(plane: _Plane, places: Sequence[tuple[float, float]], kind: str) -> str:
    path = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in places)
    return f'<polyline class="{kind}" points="{path}"/>'


def _below(words: str) -> str:
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}"'
        f' text-anchor="middle">{words}</text>'
    )


def _percent(share: float) -> str:
    return f"{100.0 * share:.4g}%"


def _svg(words: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{body}</svg>'

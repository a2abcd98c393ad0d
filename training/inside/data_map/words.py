"""What the map says, in sentences, tables and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from models.messages import one_line
from training.data.layout.names import few_of, number
from training.inside.data_map.points import FAR, NEIGHBOURS, DataMap, Point

LISTED = 10
COLUMNS = ("photo", "label", "answer", "probability", "among", "distance")


def sentences(found: DataMap) -> list[str]:
    """How many photos, mistakes and outliers there are, and what cannot be judged."""
    shown = len(found.points)
    known = sum(point.known for point in found.points)
    left = found.photos - shown - len(found.unreadable)
    more = f" of {found.photos:,}, as evenly over the classes as can be" if left else ""
    mistakes = len(found.mistakes)
    lines = [
        f"{shown:,} photos{more}, {_classes(len(found.classes))}. {found.axes}",
        f"{number(found.mistakes, 'mistake')}: the model's answer differs from the label."
        f" {1 - mistakes / known:.1%} are right."
        if known
        else "No photo can be right or wrong: the model knows none of the labels.",
        (
            f"{number(found.outliers, 'outlier')}: the mean distance to the {NEIGHBOURS} nearest of"
            f" the same class is unusual for the class (modified z-score above {FAR})."
        ),
    ]
    if found.unknown and known:
        lines.append(f"The model does not know the labels {few_of(list(found.unknown))}.")
    small = [
        label
        for label, count in Counter(point.label for point in found.points).items()
        if count <= NEIGHBOURS
    ]
    if small:
        lines.append(
            f"Outliers cannot be told in classes of {NEIGHBOURS} photos or fewer: {few_of(small)}."
        )
    if len(found.classes) == 1:
        lines.append("There is one class, so the map shows no separation.")
    return [one_line(line) for line in lines]


def listed(found: DataMap) -> list[str]:
    """The most telling mistakes and outliers, a line each."""
    lines = []
    for title, places in (("mistakes", found.mistakes), ("outliers", found.outliers)):
        if places:
            lines.append(f"{title}:")
        lines += [f"  {_line(found.points[place])}" for place in places[:LISTED]]
        if len(places) > LISTED:
            lines.append(f"  and {len(places) - LISTED} more; --json has all")
    return lines


def rows(found: DataMap, places: Sequence[int]) -> list[list[str]]:
    """A row of text for each of *places*, in the order of `COLUMNS`."""
    return [
        [
            point.photo,
            point.label,
            point.answer,
            f"{point.probability:.1%}",
            point.among,
            "" if point.distance is None else f"{point.distance:.3f}",
        ]
        for point in (found.points[place] for place in places)
    ]


def as_json(found: DataMap) -> dict[str, Any]:
    """Every photo with its place, label, answer, neighbours and distance."""
    return {
        "title": found.title,
        "axes": found.axes,
        "photos": found.photos,
        "unreadable": list(found.unreadable),
        "unknown_labels": found.unknown,
        "mistakes": [found.points[place].photo for place in found.mistakes],
        "outliers": [found.points[place].photo for place in found.outliers],
        "points": [
            {**asdict(point), "mistake": point.mistake, "outlier": point.outlier}
            for point in found.points
        ],
    }


def _line(point: Point) -> str:
    distance = "" if point.distance is None else f", distance {point.distance:.2f}"
    return one_line(
        f"{point.photo}: labelled {point.label}, answer {point.answer}"
        f" ({point.probability:.0%}), among {point.among}{distance}"
    )


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"

"""The photos of a data set as points: where they lie, which stand out, and what the model answers.

Letters used in shapes: N photos, K classes, D embedding features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import BadRequest, DataError
from models.inspection.feature_maps import feature_maps, session_with_outputs
from training.data.loader import limited
from training.data.predict import predict
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.inside.data_map.projection import Method, projected
from training.inside.subject import InspectedNetwork

OUTPUTS = ("embedding", "probabilities")
MOST = 5000
"""Photos on a map, as evenly over the classes as can be."""
LEAST = 10
NEIGHBOURS = 5
FAR = 3.5
"""Modified z-score of an outlier. Source: Iglewicz and Hoaglin 1993, section 3.4."""
THUMBNAIL_PX = 96
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A photo on the map."""

    photo: str
    label: str
    known: bool
    """The model has a class of that name."""
    answer: str
    probability: float
    at: tuple[float, float]
    """Across and up, 0 to 1."""
    distance: float | None
    """Mean distance to the `NEIGHBOURS` nearest of its class, 0 to 2; None: it has too few."""
    score: float
    """How far that is from what is usual in its class: the modified z-score."""
    among: str
    """The class of most of its `NEIGHBOURS` nearest photos of any class."""

    @property
    def mistake(self) -> bool:
        """The model answers with another class than the label, which it knows."""
        return self.known and self.answer != self.label

    @property
    def outlier(self) -> bool:
        """It lies far from its class."""
        return self.score > FAR


@dataclass(frozen=True, kw_only=True)
class DataMap:
    """A data set as the model sees it."""

    title: str
    axes: str
    """What the two axes are."""
    points: tuple[Point, ...]
    thumbnails_NHWC: NDArray[np.uint8]
    """What the model was given, made smaller, in the order of *points*."""
    photos: int
    """Of the source."""
    unreadable: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        """Labels, the most frequent first."""
        return [label for label, _ in Counter(point.label for point in self.points).most_common()]

    @property
    def mistakes(self) -> list[int]:
        """Places of the mistakes, the surest answer first."""
        found = [place for place, point in enumerate(self.points) if point.mistake]
        return sorted(found, key=lambda place: -self.points[place].probability)

    @property
    def outliers(self) -> list[int]:
        """Places of the outliers, the farthest first."""
        found = [place for place, point in enumerate(self.points) if point.outlier]
        return sorted(found, key=lambda place: -self.points[place].score)

    @property
    def unknown(self) -> list[str]:
        """Labels of the data that the model does not know."""
        return sorted({point.label for point in self.points if not point.known})


def data_map(
    subject: InspectedNetwork,
    source: str,
    examples: Sequence[Example],
    labels: Sequence[str],
    method: Method,
) -> DataMap:
    """The map of *examples* of *source*, whose classes are *labels*.

    Raises `BadRequest` for a graph without an embedding, fewer than `LEAST` photos, or photos that
    the model cannot tell apart.
    """
    chosen = limited(examples, MOST)
    quarantine = Quarantine(source, images=len(chosen), most=1.0)
    places, values, thumbnails_NHWC = _seen(subject, chosen, quarantine)
    if len(places) < LEAST:
        raise DataError(
            f"{len(places)} photos of {source} can be read; a map needs {LEAST} photos or more"
        )
    vectors_ND, probabilities_NK = _unit(subject, values["embedding"]), values["probabilities"]
    found_N = np.array([chosen[place].label for place in places])
    distances_N, among_N = _neighbours(vectors_ND, found_N)
    at_N2, axes = projected(vectors_ND, method)
    answers_N = probabilities_NK.argmax(axis=1)
    points = [
        Point(
            photo=chosen[place].name,
            label=labels[found_N[row]],
            known=labels[found_N[row]] in subject.labels,
            answer=subject.labels[answers_N[row]],
            probability=float(probabilities_NK[row, answers_N[row]]),
            at=(float(at_N2[row, 0]), float(at_N2[row, 1])),
            distance=None if np.isnan(distances_N[row]) else float(distances_N[row]),
            score=0.0,
            among=labels[among_N[row]],
        )
        for row, place in enumerate(places)
    ]
    return DataMap(
        title=f"{source} as {subject.title} sees it",
        axes=axes,
        points=tuple(_scored(points)),
        thumbnails_NHWC=thumbnails_NHWC,
        photos=len(examples),
        unreadable=tuple(name for _, name in quarantine.broken),
    )


def _seen(
    subject: InspectedNetwork, chosen: Sequence[Example], quarantine: Quarantine
) -> tuple[list[int], Mapping[str, Floats], NDArray[np.uint8]]:
    """The places of readable photos, what the model says of them, and the photos made smaller."""
    assert subject.model is not None
    if missing := [name for name in OUTPUTS if name not in subject.outputs]:
        raise BadRequest(
            f"{subject.title} has no output {missing[0]!r}, and the map is made of it. Packages of"
            " `loupe export` have one: export the run again, or add the output to the graph"
        )
    session = session_with_outputs(subject.model, OUTPUTS)
    small: list[NDArray[np.uint8]] = []

    def run(pixels_NHWC: NDArray[np.uint8], _: Sequence[str]) -> Mapping[str, Floats]:
        small.extend(_thumbnail(pixels_HWC) for pixels_HWC in pixels_NHWC)
        return dict(zip(OUTPUTS, feature_maps(session, pixels_NHWC), strict=True))

    places, values = predict(
        run, chosen, subject.spec, OUTPUTS, title="photos", quarantine=quarantine
    )
    return places, values, np.stack(small) if small else np.zeros((0, 1, 1, 3), np.uint8)


def _thumbnail(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(pixels_HWC)
    return np.asarray(picture.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC))


def _unit(subject: InspectedNetwork, vectors_ND: Floats) -> Floats:
    """*vectors_ND* at length 1, so that only their direction counts."""
    if not np.isfinite(vectors_ND).all():
        raise BadRequest(
            f"the embeddings of {subject.title} are not finite: its weights are damaged"
        )
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = vectors_ND / np.maximum(lengths_N1, 1e-12)
    if float(unit_ND.std(axis=0).max()) < 1e-6:
        raise BadRequest(
            f"{subject.title} gives the same embedding for every photo, so there is no map. Is it"
            " trained?"
        )
    return np.asarray(unit_ND, dtype=np.float32)


def _neighbours(
    vectors_ND: Floats, labels_N: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The mean distance to the nearest of the own class, [N], and the class around, [N].

    NaN for photos of classes that have too few.
    """
    from sklearn.neighbors import NearestNeighbors

    distances_N = np.full(len(labels_N), np.nan)
    for label in np.unique(labels_N):
        own = np.flatnonzero(labels_N == label)
        if len(own) > NEIGHBOURS:
            search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(vectors_ND[own])
            distances_N[own] = search.kneighbors()[0].mean(axis=1)
    nearest_Nk = (
        NearestNeighbors(n_neighbors=NEIGHBOURS).fit(vectors_ND).kneighbors(return_distance=False)
    )
    among = [Counter(row).most_common(1)[0][0] for row in labels_N[nearest_Nk].tolist()]
    return distances_N, np.array(among)


def _scored(points: Sequence[Point]) -> list[Point]:
    """*points* with the modified z-score of their distance within their class."""
    groups: dict[str, list[float]] = {}
    for point in points:
        if point.distance is not None:
            groups.setdefault(point.label, []).append(point.distance)
    middles = {label: float(np.median(found)) for label, found in groups.items()}
    spreads = {
        label: float(np.median(np.abs(np.array(found) - middles[label])))
        for label, found in groups.items()
    }
    return [
        point
        if point.distance is None or not spreads[point.label]
        else replace(
            point, score=0.6745 * (point.distance - middles[point.label]) / spreads[point.label]
        )
        for point in points
    ]

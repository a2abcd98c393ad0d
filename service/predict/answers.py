"""What the model says about a photo, and how it is written: as rows of a table, or as JSON.

Letters used in shapes: H and W pixels, K classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from rich.cells import cell_len, set_cell_size

from models.atomic_files import storage_errors
from models.errors import OutputUnavailable, RequestError
from models.inspection.heatmap import heatmap, overlay_png
from models.messages import one_line, reason
from service.engine.classifier import Classification, Classifier
from service.predict.photos import Photo
from service.scoring.input.items import plain_text

PHOTO_CELLS, LABEL_CELLS, SHARE_CELLS = 38, 28, 8
"""Widths of the table's columns: with two gaps of two they fit a terminal of 80."""


@dataclass(frozen=True)
class Answer:
    """The answer to one photo."""

    photo: str
    found: Classification
    heat: Path | None = None
    """The heat map of the likeliest class, if it was asked for."""


@dataclass(frozen=True)
class Failure:
    """Why one photo has no answer."""

    photo: str
    code: str
    detail: str


@dataclass
class Predictor:
    """Answers photos, one at a time: a bad one costs no other its answer."""

    classifier: Classifier
    top_k: int
    explain: bool = False
    out: Path | None = None
    """Folder of the heat maps. None: beside the photos."""
    _written: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        outputs = {output.name for output in self.classifier.manifest.outputs}
        if self.explain and "cam" not in outputs:
            raise OutputUnavailable(
                f"{self.classifier.name} computes no heat maps (it has {', '.join(sorted(outputs))}"
                "); leave --explain away, or name the package that an edge bundle was made of"
            )

    def answer(self, photo: Photo) -> Answer | Failure:
        """What is in *photo*, or why that cannot be said.

        Raises `StoreError` if a heat map cannot be written.
        """
        try:
            pixels_HWC = self.classifier.decode(photo.read())
        except RequestError as error:
            return Failure(photo.name, error.code, str(error))
        except OSError as error:
            return Failure(photo.name, "unreadable", reason(error))
        outputs = ("probabilities", "cam") if self.explain else ("probabilities",)
        computed = self.classifier.model.run(pixels_HWC[np.newaxis], outputs)
        found = self.classifier.answer(computed["probabilities"][0], top_k=self.top_k)
        if not self.explain:
            return Answer(photo.name, found)
        heat = heatmap(computed["cam"][0], found.predictions[0].index)
        place = self._place_of(photo)
        with storage_errors(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(overlay_png(pixels_HWC, heat.heat_hw))
        return Answer(photo.name, found, place)

    def _place_of(self, photo: Photo) -> Path:
        """Where the heat map of *photo* goes. No two photos of a command share a place."""
        wanted = photo.heat if self.out is None else self.out / photo.relative
        place, number = wanted, 1
        while place in self._written:
            number += 1
            place = wanted.with_name(f"{number}-{wanted.name}")
        self._written.add(place)
        return place


class Table:
    """Prints each answer as it comes, in rows of at most 80 cells; failures go to stderr."""

    def __init__(self, *, abstain_threshold: float) -> None:
        self._threshold = abstain_threshold
        self._begun = False

    def show(self, answer: Answer | Failure) -> None:
        """Print *answer*."""
        if isinstance(answer, Failure):
            click.echo(f"error: {_shown(answer.photo)}: {one_line(answer.detail)}", err=True)
            return
        if not self._begun:
            click.echo(_row("photo", "answer", "share"))
            click.echo("-" * (PHOTO_CELLS + LABEL_CELLS + SHARE_CELLS + 4))
            self._begun = True
        name = _cut_left(_shown(answer.photo), PHOTO_CELLS)
        for label, share in self._cells(answer):
            click.echo(_row(name, label, share))
            name = ""
        if answer.heat is not None:
            click.echo(f"  heat map: {_shown(str(answer.heat))}")

    def _cells(self, answer: Answer) -> Iterator[tuple[str, str]]:
        if answer.found.abstained:
            yield f"no answer: below {self._threshold:.1%}", ""
        for prediction in answer.found.predictions:
            yield one_line(prediction.label), f"{prediction.probability:.1%}"


class JsonLines:
    """Prints each answer or failure as one line of JSON."""

    def __init__(self, classifier: Classifier) -> None:
        self._model = {"name": classifier.name, "version": classifier.version or None}

    def show(self, answer: Answer | Failure) -> None:
        """Print *answer*."""
        line: dict[str, object] = {"photo": plain_text(answer.photo)}
        if isinstance(answer, Failure):
            line["error"] = {"code": answer.code, "detail": answer.detail}
        else:
            line |= {
                "model": self._model,
                "predictions": [one._asdict() for one in answer.found.predictions],
                "abstained": answer.found.abstained,
            }
            if answer.heat is not None:
                line["heat_map"] = plain_text(str(answer.heat))
        click.echo(json.dumps(line, ensure_ascii=False))


@dataclass
class Summary:
    """Counts what several photos came to."""

    failed: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    abstained: int = 0

    def add(self, answer: Answer | Failure) -> None:
        """Count *answer*."""
        if isinstance(answer, Failure):
            self.failed += 1
        elif answer.found.abstained:
            self.abstained += 1
        else:
            self.answered[answer.found.predictions[0].label] += 1

    def text(self) -> str:
        """Such as `12 photos: ants 7, bees 4, no answer 1`; empty for one alone."""
        parts = [f"{label} {count:,}" for label, count in self.answered.most_common(10)]
        if len(self.answered) > len(parts):
            parts.append(f"{len(self.answered) - len(parts):,} classes more")
        parts += [f"no answer {self.abstained:,}"] * bool(self.abstained)
        parts += [f"failed {self.failed:,}"] * bool(self.failed)
        photos = self.answered.total() + self.abstained + self.failed
        return f"{photos:,} photos: {', '.join(parts)}" if photos > 1 else ""


def _shown(name: str) -> str:
    return one_line(name)


def _row(photo: str, label: str, share: str) -> str:
    label = label if cell_len(label) <= LABEL_CELLS else f"{_cut(label, LABEL_CELLS - 1)}…"
    cells = f"{set_cell_size(photo, PHOTO_CELLS)}  {set_cell_size(label, LABEL_CELLS)}"
    return f"{cells}  {share:>{SHARE_CELLS}}".rstrip()


def _cut(text: str, cells: int) -> str:
    return set_cell_size(text, cells).rstrip()


def _cut_left(text: str, cells: int) -> str:
    """*text*, or its end behind `…` where it is wider than *cells*: the end tells files apart."""
    if cell_len(text) <= cells:
        return text
    end = text[-cells:]
    while cell_len(end) > cells - 1:
        end = end[1:]
    return f"…{end}"

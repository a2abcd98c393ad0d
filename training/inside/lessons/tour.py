"""`loupe learn`: the tour of eight chapters, on a model and the learner's own photo."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import wrap

import click

from models.errors import BadRequest
from models.messages import one_line
from models.package.manifest import GOLDEN_FOLDER
from models.store.store import Store
from training.inside.lessons import chapters, deep_chapters
from training.inside.lessons.numbers import WIDTH
from training.inside.lessons.part import Chapter, chapter_section, chapter_text
from training.inside.page import page
from training.inside.subject import InspectedNetwork, open_subject

DEMO = "digits"
"""The model that `loupe demo` publishes."""
STAND_IN = "mobilenet_v3_small"
"""The network that is shown if there is no model."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the tour is about."""

    subject: InspectedNetwork
    model: str
    """As typed in a command."""
    weights: str | None = None
    """Of a network by name."""
    photo: Path
    notes: tuple[str, ...] = ()
    """What the learner should know about this choice."""


def choose(
    photo: Path | None, model: str | None, *, store: Path, weights: str | None = None
) -> Choice:
    """The model and the photo of the tour: what was given, or what there is.

    Raises what `open_subject` raises.
    """
    notes: list[str] = []
    if model is None and DEMO in Store(store).names():
        model = DEMO
    if model is None:
        model, weights = STAND_IN, weights or "none"
        notes.append(
            f"The store {store} has no model {DEMO!r}. `loupe demo` makes it in some minutes. Until"
            f" then you see {STAND_IN} without training: its filters are random numbers."
        )
    subject = open_subject(model, store=store, weights=weights)
    if photo is None:
        photo = _some_photo(model, store)
        notes.append("You gave no photo, so an example is shown. `loupe learn PHOTO` takes yours.")
    return Choice(subject=subject, model=model, weights=weights, photo=photo, notes=tuple(notes))


def tour(choice: Choice) -> Iterator[Chapter]:
    """The chapters, each computed when it is asked for."""
    options = ["--weights", choice.weights] if choice.weights else []
    pupil = chapters.pupil(
        choice.subject,
        choice.photo,
        shlex.join([choice.model, *options]),
        shlex.join([choice.model, str(choice.photo), *options]),
    )
    yield chapters.pixels_chapter(pupil)
    yield chapters.convolution_chapter(pupil)
    yield chapters.filters_chapter(pupil)
    yield chapters.sizes_chapter(pupil)
    found = deep_chapters.looked_at(pupil)
    yield deep_chapters.maps_chapter(pupil, found)
    yield deep_chapters.fields_chapter(pupil, found)
    yield deep_chapters.evidence_chapter(pupil)
    yield deep_chapters.training_chapter(pupil)


def title(choice: Choice) -> str:
    """The tour's title."""
    return f"Inside {choice.subject.title}, with {choice.photo.name}"


def tour_page(choice: Choice, found: Sequence[Chapter]) -> str:
    """The tour as a page: the answers open when their question is chosen."""
    return page(
        title(choice),
        [*choice.notes, "Eight short chapters, from pixels to the answer. All numbers are real."],
        [chapter_section(number, chapter) for number, chapter in enumerate(found, start=1)],
    )


def play(found: Sequence[Chapter], *, wait: Callable[[str], str] | None) -> None:
    """Print the chapters. *wait* reads a line before an answer; None: it is printed at once."""
    for number, chapter in enumerate(found, start=1):
        click.echo("\n".join(chapter_text(number, chapter)))
        _echo(f"Question: {chapter.question}")
        if wait is not None and _stops(wait, "Enter shows the answer, q ends the tour: "):
            return
        _echo(f"Answer: {chapter.answer}")
        click.echo()
        last = number == len(found)
        if wait is not None and not last and _stops(wait, "Enter goes to the next chapter: "):
            return


def reader() -> Callable[[str], str] | None:
    """What reads a line from the learner; None: nobody is at a terminal."""
    return input if sys.stdin.isatty() and sys.stdout.isatty() else None


def _stops(wait: Callable[[str], str], prompt: str) -> bool:
    try:
        return wait(prompt).strip().lower() in {"q", "quit"}
    except EOFError:
        click.echo()
        return True


def _echo(text: str) -> None:
    click.echo("\n".join(wrap(one_line(text), WIDTH)))


def _some_photo(model: str, store: Path) -> Path:
    """A held-out image of the package, or a photo that scikit-learn brings along."""
    found = Store(store)
    name = model.partition("@")[0].partition(":")[0]
    folder = found.resolve(model).path if name in found.names() else Path(model)
    golden = sorted((folder / GOLDEN_FOLDER).glob("*.png"))
    if golden:
        return golden[0]
    with as_file(files("sklearn.datasets.images") / "flower.jpg") as photo:
        if not photo.is_file():
            raise BadRequest("give a photo: loupe learn PHOTO")
        return photo

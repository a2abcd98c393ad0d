"""A chapter of the tour: what it says and shows, a question, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.inside.lessons.part import Part, printed, section
from training.inside.page import Section
from training.inside.pictures import Sheet, figures


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One step of the tour."""

    part: Part
    sheets: Sequence[Sheet] = ()
    """Pictures of the page."""
    drawing: str = ""
    """SVG, for the page too."""
    question: str
    answer: str
    """Computed from this model and this photo."""
    commands: Sequence[str]
    """What shows more of it."""


def chapter_section(number: int, chapter: Chapter) -> Section:
    """*chapter* as a part of the page."""
    pictures = chapter.drawing + "".join(map(figures, chapter.sheets))
    shown = section(chapter.part, pictures)
    return replace(
        shown,
        title=f"{number}. {shown.title}",
        question=chapter.question,
        answer=chapter.answer,
        commands=chapter.commands,
    )


def chapter_text(number: int, chapter: Chapter) -> list[str]:
    """*chapter* for the terminal, without its question."""
    part = replace(chapter.part, title=f"{number}. {chapter.part.title}")
    more = [f"  loupe {command}" for command in chapter.commands]
    return [*printed(part), "See more of it:", *more, ""]

"""Parts of lessons and chapters of the tour, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

from models.messages import one_line
from training.inside.lessons.numbers import WIDTH, Matrix, html, lines
from training.inside.page import Section
from training.inside.pictures import Sheet, figures


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is said about one thing, with its numbers."""

    title: str
    sentences: Sequence[str] = ()
    matrices: Sequence[Sequence[Matrix]] = ()
    """Each group is shown on a line of its own."""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    after: Sequence[str] = ()
    """Sentences below the table."""


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


def printed(part: Part) -> list[str]:
    """*part* for the terminal, in lines of at most `WIDTH` columns."""
    found = [one_line(part.title), *_wrapped(part.sentences), ""]
    for group in part.matrices:
        found += lines(group)
    if part.rows:
        rows = [[one_line(cell) for cell in row] for row in part.rows]
        found += [*aligned([part.columns, *rows]), ""]
    return [*found, *_wrapped(part.after), *([""] if part.after else [])]


def section(part: Part, picture: str = "") -> Section:
    """*part* for a page, with *picture* (HTML) before its numbers."""
    return Section(
        title=part.title,
        text="\n".join(part.sentences),
        picture=picture + "".join(html(group) for group in part.matrices),
        columns=part.columns,
        rows=part.rows,
        after="\n".join(part.after),
    )


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
    more = [f"  loupe {one_line(command)}" for command in chapter.commands]
    return [*printed(part), "See more of it:", *more, ""]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """*rows*, of which the first is the head, as columns of text: numbers to the right."""
    columns = list(zip(*rows, strict=True))
    padded = []
    for index, column in enumerate(columns):
        width = max(map(len, column))
        numbers = index > 0 and all(not cell or cell[0] in "-0123456789" for cell in column[1:])
        padded.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in column])
    return ["  " + "  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def _wrapped(sentences: Sequence[str]) -> list[str]:
    return [line for one in sentences for line in wrap(one_line(one), WIDTH)]

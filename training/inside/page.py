"""One page of HTML for any command of `loupe inspect`. It loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: a sentence, a picture, a table, or several of them."""

    title: str
    text: str = ""
    picture: str = ""
    """SVG or `<img>`. Written as it is: whoever makes it escapes names."""
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    after: str = ""
    """Sentences below the table. Like `text` it may have several lines: a paragraph each."""
    question: str = ""
    answer: str = ""
    """Of the question; it opens when the question is chosen."""
    commands: Sequence[str] = ()
    """Commands of `loupe` that show more."""


def page(title: str, summary: Sequence[str], sections: Sequence[Section]) -> str:
    """The page, with *summary* as its first sentences. Texts are escaped."""
    return _ENVIRONMENT.get_template("page.html").render(
        title=title, summary=summary, sections=sections
    )

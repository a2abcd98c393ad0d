"""What commands of `loupe inspect` print and write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.messages import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from training.inside.subject import InspectedNetwork

UNBOUNDED = 1000
"""Columns of a table that no terminal shows."""


def print_layers(subject: InspectedNetwork, sentences: list[str]) -> None:
    """The short table of layers, and *sentences* below it.

    A file or another program gets whole names of layers, however long the lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from training.inside.shapes import SHORT_COLUMNS, short_table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for position, name in enumerate(SHORT_COLUMNS):
        grid.add_column(name, justify="right" if position > 2 else "left", no_wrap=True)
    # `COLUMNS`, or the terminal's own width; a pipe has none.
    width = shutil.get_terminal_size(fallback=(UNBOUNDED, 0)).columns
    console = Console(highlight=False, width=width)
    for row in short_table(subject.layers, width if width < UNBOUNDED else None):
        grid.add_row(*(Text(cell) for cell in row))
    click.echo(subject.title)
    console.print(grid)
    for sentence in sentences:
        click.echo(one_line(sentence))


def tell_unreadable(names: Sequence[str]) -> None:
    """A line about photos of a source that cannot be read, if there are any."""
    if names:
        first = ", ".join(map(one_line, names[:3]))
        noun = "photo" if len(names) == 1 else "photos"
        click.echo(f"{len(names)} {noun} cannot be read: {first}", err=True)


def write_picture(file: Path, picture: Image) -> None:
    """*picture* as PNG, or inside a page where *file* ends in .html."""
    from training.inside.page import Section, page
    from training.inside.pictures import image_tag, png

    encoded, title = png(picture), str(picture.info["title"])
    if file.suffix.lower() != ".png":
        section = Section(title="", picture=image_tag(encoded, title))
        write_file(file, page(title, [], [section]).encode())
    else:
        write_file(file, encoded)


def write_result(file: Path, picture: Callable[[], Image], page: Callable[[], str]) -> None:
    """*picture* where *file* ends in .png, otherwise *page*."""
    if file.suffix.lower() == ".png":
        write_picture(file, picture())
    else:
        write_file(file, page().encode())


def write_file(file: Path, content: bytes) -> None:
    """*content* as *file*, and a line that says so. Raises `StoreError`."""
    from models.atomic_files import storage_errors

    with storage_errors(file):
        file.write_bytes(content)
    click.echo(f"wrote {one_line(str(file))}", err=True)

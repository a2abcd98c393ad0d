"""`loupe inspect ...`. What a command needs is imported when it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.messages import one_line

if TYPE_CHECKING:
    from training.inspect.subject import Subject


class _Size(click.ParamType):
    """224, or HEIGHTxWIDTH."""

    name = "PIXELS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:  # Any: as click has it
        """Height and width of *value*."""
        sides = str(value).split("x")
        if not all(side.isdecimal() and 0 < int(side) <= 8192 for side in sides) or len(sides) > 2:
            self.fail(f"{value!r} is no size; expected 224 or 224x320, up to 8192", param, ctx)
        return int(sides[0]), int(sides[-1])


class _Plan(click.ParamType):
    """Whole numbers with commas between."""

    name = "SIZES"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:  # Any: as click has it
        """The numbers of *value*."""
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r} is no plan of sizes; expected 224,112,56,28", param, ctx)
        return [int(part) for part in parts]


_subject = click.argument("subject", metavar="NETWORK|RUN|PACKAGE")
_store = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
_html = click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with all columns and the picture.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def inspect() -> None:
    """What a network is, layer by layer, and what it sees."""


@inspect.command()
@_subject
@click.option("--input", "image_size", type=_Size(), help="Size of the image, 224 or 224x320.")
@click.option("--expect", type=_Plan(), help="Sizes of the maps to check, as in 224,112,56,28.")
@_html
@_json
@_store
def shapes(
    subject: str,
    image_size: tuple[int, int] | None,
    expect: list[int] | None,
    html_file: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """Shape, formula, cost and receptive field of each layer.

    NETWORK is a name such as resnet18, RUN the folder of a run, PACKAGE a folder or a model of the
    store, NAME[:VERSION|@ALIAS]. Packages are timed on this machine too.
    """
    from models.inspection.layers import check_plan
    from training.inspect.shapes import as_json as document
    from training.inspect.shapes import summary

    found = _measured(_opened(subject, store, image_size))
    if as_json:
        click.echo(json.dumps(document(found), ensure_ascii=False, indent=1))
    else:
        _print(found, summary(found))
    if html_file is not None:
        _write(html_file, _shapes_page(found))
    if expect is not None:
        check_plan(found.layers, found.image_size[0], expect)
        click.echo(f"The sizes are as planned: {', '.join(map(str, expect))}.", err=as_json)


def _opened(subject: str, store: Path | None, image_size: tuple[int, int] | None) -> Subject:
    from models.settings import load_store_settings
    from training.inspect.subject import open_subject

    return open_subject(subject, store=store or load_store_settings().store, image_size=image_size)


def _measured(subject: Subject) -> Subject:
    if subject.encoded is None:
        return subject
    from models.inspection.timing import measured_layers

    return replace(subject, layers=measured_layers(subject.encoded, subject.layers))


def _print(subject: Subject, sentences: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from training.inspect.shapes import SHORT_COLUMNS, short_table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for position, name in enumerate(SHORT_COLUMNS):
        grid.add_column(name, justify="right" if position > 2 else "left", no_wrap=True)
    for row in short_table(subject.layers):
        grid.add_row(*(Text(cell) for cell in row))
    click.echo(subject.title)
    Console(highlight=False).print(grid)
    for sentence in sentences:
        click.echo(one_line(sentence))


def _shapes_page(subject: Subject) -> str:
    from training.inspect.page import Section, page
    from training.inspect.shapes import COLUMNS, funnel_svg, summary, table

    measured = subject.encoded is not None
    return page(
        f"Shapes of {subject.title}",
        summary(subject),
        [
            Section(
                title="The funnel: space shrinks, channels grow",
                picture=funnel_svg(subject.layers, subject.image_size),
                caption=(
                    "Each bar is a feature map. Its height is to scale; its width grows with the"
                    " square root of the channels. Point at a bar for the layer's name."
                ),
            ),
            Section(
                title="Layer by layer",
                text=(
                    "The size of an output follows from"
                    " (input - kernel + 2·padding) / stride + 1, rounded down. Sizes of fields,"
                    " jumps and starts are pixels of the image."
                ),
                columns=[*COLUMNS, *(["measured ms"] if measured else [])],
                rows=table(subject.layers, measured=measured),
            ),
        ],
    )


def _write(file: Path, text: str) -> None:
    from models.atomic_files import storage_errors

    with storage_errors(file):
        file.write_text(text, encoding="utf-8")
    click.echo(f"wrote {file}", err=True)

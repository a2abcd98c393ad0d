"""`loupe inspect convolution` and `normalisation`, and `loupe learn`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from models.messages import one_line
from training.inside.options import (
    image_argument,
    json_option,
    layer_option,
    out_if_asked,
    store_option,
    subject_argument,
    weights_option,
)


class Place(click.ParamType[tuple[int, int]]):
    """ROW,COL."""

    name = "ROW,COL"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:  # Any: as click has it
        """Row and column of *value*."""
        parts = str(value).split(",")
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r} is no place; expected row and column, as in 10,12", param, ctx)
        return int(parts[0]), int(parts[1])


@click.command()
@subject_argument
@image_argument
@layer_option
@click.option("--filter", "channel", type=int, help="The output channel.  [default: the strongest]")
@click.option("--at", "place", type=Place(), help="The output value.  [default: the strongest]")
@click.option("--backward", is_flag=True, help="Also what gradients come back.")
@weights_option
@out_if_asked
@json_option
@store_option
def convolution(
    subject: str,
    image: Path,
    layer: str | None,
    channel: int | None,
    place: tuple[int, int] | None,
    backward: bool,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """One output value worked out by hand: patch, kernel, products, sum.

    Layer L is a convolution or a pooling. SUBJECT is as in `loupe inspect shapes`. With --backward
    also the gradients of kernel, bias and input, and what pooling passes back.
    """
    from training.inside.lessons.convolution import document, forward_parts, lesson
    from training.inside.lessons.convolution_back import backward_parts
    from training.inside.lessons.convolution_page import convolution_page, convolution_picture
    from training.inside.lessons.part import printed
    from training.inside.output import write_result
    from training.inside.subject import first_convolution, open_subject

    found = open_subject(subject, store=store, weights=weights)
    shown = lesson(
        found,
        image,
        layer or first_convolution(found),
        channel=channel,
        place=place,
        backwards=backward,
    )
    if out is not None:
        write_result(out, lambda: convolution_picture(shown), lambda: convolution_page(shown))
    if as_json:
        click.echo(json.dumps(document(shown)))
        return
    click.echo(one_line(shown.title))
    for part in (*forward_parts(shown), *backward_parts(shown)):
        click.echo("\n".join(printed(part)))


@click.command()
@subject_argument
@click.argument(
    "images",
    metavar="IMAGE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@layer_option
@weights_option
@out_if_asked
@json_option
@store_option
def normalisation(
    subject: str,
    images: tuple[Path, ...],
    layer: str | None,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """What batch, layer, instance and group normalisation average over.

    All four on the same values: what layer L gives for each IMAGE. SUBJECT is as in `loupe inspect
    shapes`.
    """
    from training.inside.lessons.normalisation import compare, document
    from training.inside.lessons.normalisation_page import (
        normalisation_page,
        normalisation_picture,
        parts,
    )
    from training.inside.lessons.part import printed
    from training.inside.output import write_result
    from training.inside.subject import first_convolution, open_subject

    found = open_subject(subject, store=store, weights=weights)
    compared = compare(found, images, layer or first_convolution(found))
    if out is not None:
        write_result(
            out, lambda: normalisation_picture(compared), lambda: normalisation_page(compared)
        )
    if as_json:
        click.echo(json.dumps(document(compared)))
        return
    click.echo(one_line(compared.title))
    for part in parts(compared):
        click.echo("\n".join(printed(part)))


@click.command()
@click.argument(
    "photo", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--model",
    metavar="NETWORK|RUN|PACKAGE",
    help="As in `loupe inspect shapes`.  [default: the model of `loupe demo`]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("learn.html"),
    show_default=True,
    metavar="FILE",
    help="The tour as a page.",
)
@weights_option
@store_option
def learn(
    photo: Path | None, model: str | None, out: Path, weights: str | None, store: Path | None
) -> None:
    """A tour of a network in eight short chapters, on your own photo.

    In a terminal, Enter shows the answer to each question. The same tour is written as one page
    with pictures, which loads nothing from elsewhere.
    """
    from models.settings import load_store_settings
    from training.inside.lessons.tour import choose, play, reader, title, tour, tour_page
    from training.inside.output import write_file

    # Before the work and not after.
    if not out.parent.is_dir():
        raise click.BadParameter(
            f"there is no folder {one_line(str(out.parent))}", param_hint="--out"
        )
    choice = choose(photo, model, store=store or load_store_settings().store, weights=weights)
    for note in choice.notes:
        click.echo(note, err=True)
    click.echo("computing eight chapters takes some seconds", err=True)
    found = list(tour(choice))
    write_file(out, tour_page(choice, found).encode())
    click.echo(f"{one_line(title(choice))}\n")
    play(found, wait=reader())


LESSONS = (convolution, normalisation)
"""The commands that `loupe inspect` takes from here."""

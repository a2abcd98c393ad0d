"""The arguments and options that commands of `loupe inspect` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from models.messages import one_line

F = TypeVar("F", bound=Callable[..., Any])  # Any: a command takes what its options give


class Size(click.ParamType[tuple[int, int]]):
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


class Plan(click.ParamType[list[int]]):
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


subject_argument = click.argument("subject", metavar="NETWORK|RUN|PACKAGE")
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


image_argument = click.argument(
    "image", type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
layer_option = click.option(
    "--layer",
    metavar="L",
    help="A name of `loupe inspect shapes`.  [default: the first convolution]",
)
class_option = click.option(
    "--class", "label", metavar="LABEL", help="The class.  [default: the answer]"
)
weights_option = click.option(
    "--weights",
    metavar="default|none|FILE",
    help="Weights of a network by name.  [default: the published ones, if there are any]",
)


def photos_option(*, required: bool) -> Callable[[F], F]:
    """`--data SOURCE`."""
    return click.option(
        "--data", "source", required=required, metavar="SOURCE", help="Photos, as in `train`."
    )


def _picture_file(
    _context: click.Context, _parameter: click.Parameter, file: Path | None
) -> Path | None:
    """*file*, refused before any work if it is neither a picture nor a page."""
    if file is not None and file.suffix.lower() not in {".png", ".html", ".htm"}:
        raise click.BadParameter(f"{one_line(str(file))} is neither .png nor .html; choose one")
    return file


def _out(text: str) -> Callable[[F], F]:
    return click.option(
        "--out",
        callback=_picture_file,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help=text,
    )


out_option = _out("The picture, .png or .html.  [default: the command's name with .png]")
out_if_asked = _out("Write the picture, .png, or a page with all figures, .html.")
"""For commands that print a table: they write no file unless they are asked to."""

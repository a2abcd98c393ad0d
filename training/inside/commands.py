"""`loupe inspect ...`. What a command needs is imported when it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.messages import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from training.inside.comparison import Comparison
    from training.inside.subject import InspectedNetwork


class _Size(click.ParamType[tuple[int, int]]):
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


class _Plan(click.ParamType[list[int]]):
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


_image = click.argument("image", type=click.Path(path_type=Path, exists=True, dir_okay=False))
_layer = click.option(
    "--layer",
    metavar="L",
    help="A name of `loupe inspect shapes`.  [default: the first convolution]",
)
_weights = click.option(
    "--weights",
    metavar="default|none|FILE",
    help="Weights of a network by name.  [default: the published ones, if there are any]",
)
_out = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The picture, .png or .html.  [default: the command's name with .png]",
)


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
    from training.inside.shapes import as_json as document
    from training.inside.shapes import summary

    found = _measured(_opened(subject, store, image_size=image_size, computes=False))
    if as_json:
        click.echo(json.dumps(document(found), ensure_ascii=False, indent=1))
    else:
        _print(found, summary(found))
    if html_file is not None:
        _write(html_file, _shapes_page(found).encode())
    if expect is not None:
        check_plan(found.layers, found.image_size[0], expect)
        click.echo(f"The sizes are as planned: {', '.join(map(str, expect))}.", err=as_json)


@inspect.command()
@_subject
@_image
@_layer
@_weights
@_out
@_json
@_store
def features(
    subject: str,
    image: Path,
    layer: str | None,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """The feature maps with which layer L answers to IMAGE, as a picture.

    SUBJECT is as in `loupe inspect shapes`. A network or a run is exported first, which takes some
    seconds.
    """
    from training.inside.maps import features as maps_of
    from training.inside.maps import features_json, features_picture

    found = _opened(subject, store, weights=weights)
    maps = maps_of(found, image, layer or _first_convolution(found))
    if as_json:
        click.echo(json.dumps(features_json(maps), indent=1))
    if out is not None or not as_json:
        _write_picture(out or Path("features.png"), features_picture(found, maps))


@inspect.command()
@_subject
@_layer
@_weights
@_out
@_json
@_store
def filters(
    subject: str,
    layer: str | None,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """The weights of convolution L, as a picture.

    SUBJECT is as in `loupe inspect shapes`. A network or a run is exported first, which takes some
    seconds.
    """
    from training.inside.maps import filters as filters_of
    from training.inside.maps import filters_picture

    found = _opened(subject, store, weights=weights)
    convolution, values_DIhw = filters_of(found, layer or _first_convolution(found))
    if as_json:
        document = {"layer": convolution.name, "weights": values_DIhw.tolist()}
        click.echo(json.dumps(document))
    if out is not None or not as_json:
        _write_picture(out or Path("filters.png"), filters_picture(found, convolution, values_DIhw))


@inspect.command()
@_subject
@_image
@click.option("--class", "label", metavar="LABEL", help="The class.  [default: the answer]")
@_weights
@_out
@_json
@_store
def explain(
    subject: str,
    image: Path,
    label: str | None,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """The parts of IMAGE that an answer rests on, and how good each map is.

    SUBJECT is as in `loupe inspect shapes`. Three methods: class activation, from the graph's
    output `cam`, occlusion, and integrated gradients. Deletion and insertion measure each against
    a random map.
    """
    from training.inside.evidence import explain as explained_of
    from training.inside.evidence import explain_json, explain_picture, sentences

    found = _opened(subject, store, weights=weights)
    explained = explained_of(found, image, label)
    if as_json:
        click.echo(json.dumps(explain_json(explained)))
    else:
        click.echo(f"{explained.label}: {explained.probability:.1%}")
        for sentence in sentences(explained):
            click.echo(sentence)
    if out is not None or not as_json:
        _write_picture(out or Path("explain.png"), explain_picture(found, explained))


@inspect.command()
@_subject
@click.option("--data", "source", required=True, metavar="SOURCE", help="Photos, as in `train`.")
@_layer
@click.option("--filter", "channel", type=int, default=0, show_default=True, help="The channel.")
@_weights
@_out
@_json
@_store
def patches(
    subject: str,
    source: str,
    layer: str | None,
    channel: int,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """The nine patches in the photos of SOURCE that excite a filter most.

    Each is cropped to what one cell sees, with a guided gradient below it. SUBJECT is as in `loupe
    inspect shapes`.
    """
    from training.data.source import list_source
    from training.inside.top_patches import patches as patches_of
    from training.inside.top_patches import patches_json, patches_picture

    photos = [example for split in list_source(source).splits.values() for example in split]
    found = _opened(subject, store, weights=weights)
    result = patches_of(found, layer or _first_convolution(found), channel, photos)
    if result.unreadable:
        left_out = ", ".join(result.unreadable[:3])
        click.echo(f"{len(result.unreadable)} photos cannot be read: {left_out}", err=True)
    if as_json:
        click.echo(json.dumps(patches_json(result), ensure_ascii=False, indent=1))
    if out is not None or not as_json:
        _write_picture(out or Path("patches.png"), patches_picture(found, result))


@inspect.command()
@_subject
@click.argument("other", metavar="OTHER", required=False)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    required=True,
    metavar="FILE",
    help="The photo; given twice, one network is compared on two photos.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0.0, 10.0),
    default=0.01,
    show_default=True,
    help="Relative error above which two layers are said to part.",
)
@_weights
@_html
@_json
@_store
def compare(
    subject: str,
    other: str | None,
    images: tuple[Path, ...],
    tolerance: float,
    weights: str | None,
    html_file: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """The first layer where two networks part, and the error layer by layer.

    SUBJECT and OTHER are as in `loupe inspect shapes`: two versions, or fp32 and int8. With two
    photos, SUBJECT alone is compared with itself.
    """
    from training.inside.comparison import as_json as document
    from training.inside.comparison import compare as compared
    from training.inside.comparison import sentences

    if (other is None) == (len(images) == 1) or len(images) > 2:
        raise click.UsageError("give OTHER and one --image, or two --image and no OTHER")
    first = _opened(subject, store, weights=weights)
    second = first if other is None else _opened(other, store, weights=weights)
    found = compared(first, second, (images[0], images[-1]))
    if as_json:
        click.echo(json.dumps(document(found, tolerance), ensure_ascii=False, indent=1))
    else:
        click.echo(found.title)
        for sentence in sentences(found, tolerance):
            click.echo(sentence)
    if html_file is not None:
        _write(html_file, _comparison_page(found, tolerance).encode())


def _opened(
    subject: str,
    store: Path | None,
    *,
    image_size: tuple[int, int] | None = None,
    computes: bool = True,
    weights: str | None = None,
) -> InspectedNetwork:
    from models.settings import load_store_settings
    from training.inside.subject import open_subject

    return open_subject(
        subject,
        store=store or load_store_settings().store,
        image_size=image_size,
        computes=computes,
        weights=weights,
    )


def _first_convolution(subject: InspectedNetwork) -> str:
    from models.errors import BadRequest

    for layer in subject.layers:
        if "convolution" in layer.kind:
            return layer.name
    raise BadRequest(f"{subject.title} has no convolution; name a layer with --layer")


def _measured(subject: InspectedNetwork) -> InspectedNetwork:
    if subject.encoded is None:
        return subject
    from models.inspection.timing import measured_layers

    return replace(subject, layers=measured_layers(subject.encoded, subject.layers))


def _print(subject: InspectedNetwork, sentences: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from training.inside.shapes import SHORT_COLUMNS, short_table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for position, name in enumerate(SHORT_COLUMNS):
        grid.add_column(name, justify="right" if position > 2 else "left", no_wrap=True)
    for row in short_table(subject.layers):
        grid.add_row(*(Text(cell) for cell in row))
    click.echo(subject.title)
    Console(highlight=False).print(grid)
    for sentence in sentences:
        click.echo(one_line(sentence))


def _shapes_page(subject: InspectedNetwork) -> str:
    from training.inside.page import Section, page
    from training.inside.shapes import COLUMNS, funnel_svg, summary, table

    measured = subject.packaged
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


def _comparison_page(found: Comparison, tolerance: float) -> str:
    from training.inside.comparison import COLUMNS, bars_svg, sentences, table
    from training.inside.page import Section, page

    return page(
        found.title,
        sentences(found, tolerance),
        [
            Section(
                title="Error layer by layer",
                picture=bars_svg(found),
                caption=(
                    "Length of the difference divided by the length of the first's values, on a"
                    " logarithmic scale. Layers run from top to bottom."
                ),
            ),
            Section(title="Figures", columns=COLUMNS, rows=table(found)),
        ],
    )


def _write_picture(file: Path, picture: Image) -> None:
    """*picture* as PNG, or inside a page where *file* ends in .html."""
    from training.inside.page import Section, page
    from training.inside.pictures import image_tag, png

    encoded, title = png(picture), str(picture.info["title"])
    if file.suffix in {".html", ".htm"}:
        section = Section(title="", picture=image_tag(encoded, title))
        _write(file, page(title, [], [section]).encode())
    else:
        _write(file, encoded)


def _write(file: Path, content: bytes) -> None:
    from models.atomic_files import storage_errors

    with storage_errors(file):
        file.write_bytes(content)
    click.echo(f"wrote {one_line(str(file))}", err=True)

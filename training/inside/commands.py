"""`loupe inspect ...`. What a command needs is imported when it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.inside.data_map.command import embedding
from training.inside.flow.command import gradients
from training.inside.lessons.commands import LESSONS
from training.inside.options import (
    Plan,
    Size,
    class_option,
    image_argument,
    json_option,
    layer_option,
    out_if_asked,
    out_option,
    photos_option,
    store_option,
    subject_argument,
    weights_option,
)
from training.inside.output import print_layers, tell_unreadable, write_picture, write_result
from training.inside.subject import first_convolution, open_subject

if TYPE_CHECKING:
    from training.inside.subject import InspectedNetwork


@click.group()
def inspect() -> None:
    """What a network is, layer by layer, and what it sees."""


@inspect.command()
@subject_argument
@click.option("--input", "image_size", type=Size(), help="Size of the image, 224 or 224x320.")
@click.option("--expect", type=Plan(), help="Sizes of the maps to check, as in 224,112,56,28.")
@out_if_asked
@json_option
@store_option
def shapes(
    subject: str,
    image_size: tuple[int, int] | None,
    expect: list[int] | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """Shape, formula, cost and receptive field of each layer.

    NETWORK is a name such as resnet18, RUN the folder of a run, PACKAGE a folder or a model of the
    store, NAME[:VERSION|@ALIAS]. Packages are timed on this machine too.
    """
    from models.inspection.plan import check_plan
    from training.inside.shapes import as_json as document
    from training.inside.shapes import shapes_page, shapes_picture, summary

    found = _measured(open_subject(subject, store=store, image_size=image_size, computes=False))
    if as_json:
        click.echo(json.dumps(document(found), ensure_ascii=False, indent=1))
    else:
        print_layers(found, summary(found))
    if out is not None:
        write_result(out, lambda: shapes_picture(found), lambda: shapes_page(found))
    if expect is not None:
        check_plan(found.layers, found.image_size[0], expect)
        click.echo(f"The sizes are as planned: {', '.join(map(str, expect))}.", err=as_json)


@inspect.command()
@subject_argument
@image_argument
@layer_option
@weights_option
@out_option
@json_option
@store_option
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

    found = open_subject(subject, store=store, weights=weights)
    maps = maps_of(found, image, layer or first_convolution(found))
    if as_json:
        click.echo(json.dumps(features_json(maps), indent=1))
    if out is not None or not as_json:
        write_picture(out or Path("features.png"), features_picture(found, maps))


@inspect.command()
@subject_argument
@layer_option
@weights_option
@out_option
@json_option
@store_option
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

    found = open_subject(subject, store=store, weights=weights)
    convolution, values_DIhw = filters_of(found, layer or first_convolution(found))
    if as_json:
        document = {"layer": convolution.name, "weights": values_DIhw.tolist()}
        click.echo(json.dumps(document))
    if out is not None or not as_json:
        write_picture(out or Path("filters.png"), filters_picture(found, convolution, values_DIhw))


@inspect.command()
@subject_argument
@image_argument
@class_option
@weights_option
@out_option
@json_option
@store_option
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

    found = open_subject(subject, store=store, weights=weights)
    explained = explained_of(found, image, label)
    if as_json:
        click.echo(json.dumps(explain_json(explained)))
    else:
        click.echo(f"{explained.label}: {explained.probability:.1%}")
        for sentence in sentences(explained):
            click.echo(sentence)
    if out is not None or not as_json:
        write_picture(out or Path("explain.png"), explain_picture(found, explained))


@inspect.command()
@subject_argument
@photos_option(required=True)
@layer_option
@click.option("--filter", "channel", type=int, default=0, show_default=True, help="The channel.")
@weights_option
@out_option
@json_option
@store_option
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
    found = open_subject(subject, store=store, weights=weights)
    result = patches_of(found, layer or first_convolution(found), channel, photos)
    tell_unreadable(result.unreadable)
    if as_json:
        click.echo(json.dumps(patches_json(result), ensure_ascii=False, indent=1))
    if out is not None or not as_json:
        write_picture(out or Path("patches.png"), patches_picture(found, result))


@inspect.command()
@subject_argument
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
@weights_option
@out_if_asked
@json_option
@store_option
def compare(
    subject: str,
    other: str | None,
    images: tuple[Path, ...],
    tolerance: float,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """The first layer where two networks part, and the error layer by layer.

    SUBJECT and OTHER are as in `loupe inspect shapes`: two versions, or fp32 and int8. With two
    photos, SUBJECT alone is compared with itself.
    """
    from training.inside.comparison import as_json as document
    from training.inside.comparison import compare as compared
    from training.inside.comparison import comparison_page, comparison_picture, sentences

    if (other is None) == (len(images) == 1) or len(images) > 2:
        raise click.UsageError("give OTHER and one --image, or two --image and no OTHER")
    first = open_subject(subject, store=store, weights=weights)
    second = first if other is None else open_subject(other, store=store, weights=weights)
    found = compared(first, second, (images[0], images[-1]))
    if as_json:
        click.echo(json.dumps(document(found, tolerance), ensure_ascii=False, indent=1))
    else:
        click.echo(found.title)
        for sentence in sentences(found, tolerance):
            click.echo(sentence)
    if out is not None:
        write_result(
            out,
            lambda: comparison_picture(found, tolerance),
            lambda: comparison_page(found, tolerance),
        )


for command in (embedding, gradients, *LESSONS):
    inspect.add_command(command)


def _measured(subject: InspectedNetwork) -> InspectedNetwork:
    if subject.encoded is None:
        return subject
    from models.inspection.timing import measured_layers

    return replace(subject, layers=measured_layers(subject.encoded, subject.layers))

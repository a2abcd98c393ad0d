"""Chapters 1 to 4 of the tour: pixels, one convolution, filters, and the sizes of maps.

Letters used in shapes: H and W pixels, C and D channels of input and output, I channels that one
filter reads, h and w cells of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.errors import BadRequest
from models.inspection.layers import Layer
from models.inspection.plan import separable_saving, spatial_sizes
from training.inside.funnel import funnel_svg
from training.inside.lessons.convolution import Lesson, forward_parts, lesson
from training.inside.lessons.convolution_back import pooled_part
from training.inside.lessons.convolution_page import places_sheet
from training.inside.lessons.numbers import Matrix
from training.inside.lessons.part import Chapter, Part
from training.inside.lessons.pooling import pooled_patch
from training.inside.maps import filters, filters_sheet
from training.inside.pictures import Sheet
from training.inside.subject import InspectedNetwork, first_convolution

FILTERS = 24
CANCELS = 0.2
"""A filter finds edges if its weights add up to less than this share of their sizes."""
SIDE = 5
"""Pixels along each side of the patch that is printed."""
LARGER_PX = 32
"""How much larger the image of the question is."""


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """What the tour is about."""

    subject: InspectedNetwork
    image: Path
    arguments: str
    """Model and photo, as typed in a command."""
    model: str
    """The model alone."""
    first: Lesson
    """The strongest answer of the first convolution."""


def pupil(subject: InspectedNetwork, image: Path, model: str, arguments: str) -> Pupil:
    """The tour's subject. Raises `BadRequest` if it has no convolution."""
    if not any("convolution" in layer.kind for layer in subject.layers):
        raise BadRequest(
            f"{subject.title} has no convolution, and so no tour; choose another --model"
        )
    first = lesson(subject, image, first_convolution(subject))
    return Pupil(subject=subject, image=image, arguments=arguments, model=model, first=first)


def pixels_chapter(pupil: Pupil) -> Chapter:
    """From the file to the numbers that the network gets."""
    pixels_HWC = pupil.first.values.pixels_HWC
    height, width, channels = pixels_HWC.shape
    top, left = _corner(pupil.first, height, width)
    patch_HWC = pixels_HWC[top : top + SIDE, left : left + SIDE].astype(np.float64)
    photo = Image.fromarray(pixels_HWC)
    greys = [Image.fromarray(pixels_HWC[:, :, channel]) for channel in range(channels)]
    return Chapter(
        part=Part(
            title="Pixels: a photo is a table of numbers",
            sentences=(
                (
                    f"The network gets your photo as {height} rows of {width} pixels. Each pixel"
                    " has three numbers from 0 to 255: red, green and blue."
                ),
                f"Here are {SIDE}x{SIDE} pixels from row {top} and column {left}.",
            ),
            matrices=[
                [
                    Matrix(title=name, values_hw=patch_HWC[:, :, channel])
                    for channel, name in enumerate(("red", "green", "blue"))
                ]
            ],
            after=(
                (
                    "The network first moves and scales them, so that they lie around 0. Nothing"
                    " else of the file reaches it: no name, no date, no place."
                ),
            ),
        ),
        sheets=[
            Sheet(
                title="",
                tiles=[photo, *greys],
                labels=["what the network gets", "its red", "its green", "its blue"],
                tile_px=240,
            )
        ],
        question="How many numbers does the network get?",
        answer=f"{height} x {width} x {channels} = {height * width * channels:,}.",
        commands=[f"inspect features {pupil.arguments}"],
    )


def convolution_chapter(pupil: Pupil) -> Chapter:
    """One value of the first layer, by hand."""
    found = pupil.first
    where, products, total = forward_parts(found)[:3]
    window = found.window
    sum_of_products = window.total - (window.bias or 0.0)
    doubled = 2.0 * sum_of_products + (window.bias or 0.0)
    return Chapter(
        part=Part(
            title="One convolution by hand",
            sentences=(
                (
                    "A filter is a small table of weights, the kernel. It is laid on a patch of the"
                    " input. Each value is multiplied by the weight on it. All products are added."
                ),
                (
                    f"This is filter {window.filter} of {found.values.layer.name}, the first"
                    f" convolution, for its value at row {window.row}, column {window.column}."
                ),
                *where.sentences,
            ),
            matrices=products.matrices,
            columns=total.columns,
            rows=total.rows,
            # What is said of batch normalisation and flipping is for `inspect convolution`.
            after=total.after[: 2 if found.values.activated else 1],
        ),
        sheets=[places_sheet(found)],
        question="What would the sum be if every value of the patch were twice as large?",
        answer=(
            f"The products would double, the bias would not: 2 x {sum_of_products:.4g}"
            f" + {window.bias or 0.0:.4g} = {doubled:.4g}."
        ),
        commands=[
            f"inspect convolution {pupil.arguments} --backward",
            f"inspect normalisation {pupil.arguments}",
        ],
    )


def filters_chapter(pupil: Pupil) -> Chapter:
    """What the first layer's filters look for."""
    layer, weights_DIhw = filters(pupil.subject, pupil.first.values.layer.name)
    outputs, inputs, height, width = weights_DIhw.shape
    sums_DI, sizes_DI = weights_DIhw.sum((2, 3)), np.abs(weights_DIhw).sum((2, 3))
    # The channels' sizes decide how much each counts.
    share_D = np.abs(sums_DI).sum(1) / np.maximum(sizes_DI.sum(1), 1e-12)
    edges = int((share_D < CANCELS).sum())
    return Chapter(
        part=Part(
            title="Filters: what a layer looks for",
            sentences=(
                (
                    f"{layer.name} has {outputs} filters of {height}x{width} weights for each of"
                    f" {inputs} channels. The same filter is used at every place of the photo."
                ),
                (
                    "Nobody writes these weights: training finds them. A filter that is bright on"
                    " one side and dark on the other answers to an edge in that direction."
                ),
                (
                    "On an even surface such a filter sees nothing: its positive and negative"
                    " weights cancel, and only the bias is left."
                ),
            ),
        ),
        sheets=[filters_sheet(pupil.subject, layer, weights_DIhw, most=FILTERS)],
        question=f"In how many of the {outputs} filters do the weights nearly cancel?",
        answer=(
            f"In {edges}: added up colour by colour, they leave less than {CANCELS:.0%} of their"
            " sizes. These filters answer to edges and lines. The others also answer to brightness"
            " or colour."
        ),
        commands=[f"inspect filters {pupil.model}"],
    )


def sizes_chapter(pupil: Pupil) -> Chapter:
    """Stride, pooling and the formula."""
    subject = pupil.subject
    sizes = spatial_sizes(subject.layers, subject.image_size[0])
    rows = [
        [layer.name, "x".join(map(str, layer.shape)), layer.formula]
        for _, layer in sizes
        if layer is not None and layer.formula
    ]
    pooled = pooled_patch(pupil.first.values, pupil.first.window)
    return Chapter(
        part=Part(
            title="Stride and pooling: space shrinks, channels grow",
            sentences=(
                (
                    "A stride of 2 moves the window two cells at a time, so the map has half as"
                    " many rows and columns. Pooling shrinks a map too."
                ),
                "The size is (input - kernel + 2 x padding) / stride + 1, rounded down.",
                *(
                    (
                        (
                            "In training, corrections travel back through the network: gradients."
                            " Pooling decides who gets them."
                        ),
                        *pooled_part(pooled).sentences,
                    )
                    if pooled
                    else ()
                ),
            ),
            matrices=pooled_part(pooled).matrices if pooled else (),
            columns=("layer", "output", "rows by the formula"),
            rows=rows,
            after=(_cheap(subject),),
        ),
        drawing=funnel_svg(subject.layers, subject.image_size),
        question=_larger_question(pupil.first.values.layer),
        answer=_larger_answer(pupil.first.values.layer),
        commands=[f"inspect shapes {pupil.model}"],
    )


def _corner(found: Lesson, height: int, width: int) -> tuple[int, int]:
    """Row and column of the first pixel that is printed: where the first filter answers most."""
    field = _middle(found)
    row, column = (height // 2, width // 2) if field is None else field
    return min(max(0, row - SIDE // 2), height - SIDE), min(
        max(0, column - SIDE // 2), width - SIDE
    )


def _middle(found: Lesson) -> tuple[int, int] | None:
    """The pixel in the middle of what the window sees; None: it sees everything."""
    field = found.values.layer.field
    region = field.region(found.window.row, found.window.column) if field else None
    if region is None:
        return None
    left, top, right, bottom = region
    return int((top + bottom) / 2), int((left + right) / 2)


def _cheap(subject: InspectedNetwork) -> str:
    """Why depthwise-separable convolutions are cheap, in this network's numbers."""
    saving = separable_saving(subject.layers)
    if saving.pairs:
        return (
            f"A depthwise convolution looks at each channel alone, and a 1x1 convolution then mixes"
            f" channels. Here {saving.pairs} such pairs take {saving.separable:,} multiply-adds;"
            f" standard convolutions would take {saving.standard / saving.separable:.1f} times as"
            " many."
        )
    layer = max(subject.layers, key=lambda one: one.multiply_adds * (one.kernel != (1, 1)))
    if layer.kernel is None or layer.kernel == (1, 1):
        return ""
    inputs, outputs = layer.input_shape[0], layer.shape[0]
    window = layer.kernel[0] * layer.kernel[1]
    ratio = window * inputs * outputs / (window * inputs + inputs * outputs)
    return (
        f"At each place {layer.name} takes {window} x {inputs} x {outputs} multiply-adds. A"
        f" depthwise-separable one would take {window} x {inputs} + {inputs} x {outputs}:"
        f" {ratio:.1f} times fewer."
    )


def _larger_question(layer: Layer) -> str:
    size = layer.input_shape[1]
    return (
        f"{layer.name} makes {layer.shape[1]} rows of {size}. How many would it make of"
        f" {size + LARGER_PX}?"
    )


def _larger_answer(layer: Layer) -> str:
    assert layer.kernel is not None
    assert layer.stride is not None
    assert layer.padding is not None
    size = layer.input_shape[1] + LARGER_PX
    reach = (layer.dilation or (1, 1))[0] * (layer.kernel[0] - 1) + 1
    padding = layer.padding[0] + layer.padding[2]
    rows = (size - reach + padding) // layer.stride[0] + 1
    return (
        f"({size} - {reach} + {padding}) / {layer.stride[0]} + 1, rounded down: {rows} rows instead"
        f" of {layer.shape[1]}."
    )

"""The shapes of answers about the inside of a model, for the OpenAPI document.

As in `schemas.py`, answers are not built from these classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.http.schemas import ModelName, Shape, Share

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Sizes = Annotated[list[int], Field(min_length=2, max_length=2)]


class ReceptiveField(Shape):
    """What a cell sees, in pixels of the model's input: down, then across."""

    size: Pair | None
    jump: Pair | None
    start: Pair | None
    whole_image: bool


class LayerDetails(Shape):
    """One layer, for one image."""

    name: str
    kind: str
    inputs: list[str]
    output_shape: list[int]
    """1, channels, rows, columns; or 1 and the number of values."""
    kernel: Sizes | None
    stride: Sizes | None
    padding: list[Sizes] | None
    """Before and after, down and across."""
    dilation: Sizes | None
    groups: int
    parameters: int
    multiply_adds: int
    bytes: int
    formula: str
    sentence: str
    receptive_field: ReceptiveField | None
    """None where an operation on the way mixes places in no fixed window."""
    milliseconds: float | None
    has_maps: bool


class LayerTotals(Shape):
    """Sums over all layers."""

    parameters: int
    multiply_adds: int
    milliseconds: float | None


class LayerList(Shape):
    """The layers of a network in the order in which they run."""

    model: ModelName
    precision: str
    precisions: list[str]
    """Those that the package has."""
    image_size: Sizes
    layers: list[LayerDetails]
    totals: LayerTotals


class Features(Shape):
    """What a layer answers to an image: maps as a picture, or values."""

    model: ModelName
    precision: str
    layer: str
    kind: str
    shape: list[int]
    channels: list[int] | None = None
    tile: Sizes | None = None
    """Height and width of each tile of the sheet."""
    columns: int | None = None
    ranges: list[Pair] | None = None
    """Least and greatest value of each channel: black and white of its tile."""
    means: list[float] | None = None
    zeros: list[Share] | None = None
    """Share of the cells that are exactly 0."""
    not_finite: int | None = None
    """Cells that are infinite or no number. They count as 0."""
    sheet_png: str | None = None
    """base64 of one grey PNG with a tile for each channel, row by row."""
    values: list[float | None] | None = None
    """Of a layer without maps."""
    timing_ms: dict[str, float]


class SentFile(Shape):
    """The image as it was sent."""

    format: str
    bytes: int
    size: Sizes
    """Width and height as stored."""
    mode: str
    orientation: int
    colour_profile: str | None


class PreprocessingStep(Shape):
    """One step, and the width and height after it."""

    step: Literal["decode", "colour", "orient", "resize", "crop", "border"]
    size: Sizes
    sentence: str
    scale: str | None = None
    box: list[int] | None = None


class Preprocessing(Shape):
    """What the model is given for an image, and how that came about."""

    model: ModelName
    file: SentFile
    steps: list[PreprocessingStep]
    crop_in_photo: Annotated[list[float], Field(min_length=4, max_length=4)]
    """Left, top, right and bottom of the input, as shares of the upright photo."""
    pixels_png: str

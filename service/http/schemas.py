"""The shapes of answers, for the OpenAPI document.

Answers are not built from these classes, because validation costs time on the hot path. The tests
check that the answers have these shapes (tests/http/test_openapi.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Shape(BaseModel):
    """A JSON object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class ModelName(Shape):
    """Which model answered."""

    name: str
    version: int


class Prediction(Shape):
    """One class of an answer."""

    label: str
    index: Annotated[int, Field(ge=0)]
    probability: Share


class Explanation(Shape):
    """Where in the model's input the evidence for a class is. `explain` chooses the members."""

    method: Literal["grad-cam"]
    label: str
    index: Annotated[int, Field(ge=0)]
    peak: Annotated[float, Field(ge=0.0)]
    grid: list[list[Share]] | None = None
    """Heat of each cell, row by row from the top left."""
    overlay_png: str | None = None
    """The model's input with the heat over it, base64 of a PNG."""


class Classification(Shape):
    """The answer for one image."""

    predictions: list[Prediction]
    abstained: bool
    explanation: Explanation | None = None
    embedding: list[float] | None = None


class Answer(Classification):
    """The answer to a request with one image."""

    model: ModelName
    request_id: str
    timing_ms: dict[str, float]


class ImageProblem(Shape):
    """Why one image of several has no answer."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class Failed(Shape):
    """Replaces the answer for an image that failed."""

    error: ImageProblem


class Answers(Shape):
    """The answer to a request with several images, in their order."""

    model: ModelName
    results: list[Classification | Failed]
    request_id: str
    timing_ms: dict[str, float]


class Problem(ImageProblem):
    """A refusal, RFC 9457."""

    request_id: str


class EncodedImage(Shape):
    """An image in a JSON document: `b64`, or `url` where the service is set to fetch."""

    b64: str | None = None
    url: str | None = None


class Images(Shape):
    """A JSON document of images."""

    images: Annotated[list[EncodedImage], Field(min_length=1)]


class ServedModel(ModelName):
    """A model: the version that answers by default, and what else a request may ask for."""

    versions: list[int]
    """All that are open."""
    aliases: dict[str, int]
    """Followed aliases, by name."""


class ModelList(Shape):
    """What is served."""

    models: list[ServedModel]


class ModelDetails(BaseModel):
    """The public part of a model's manifest."""

    name: str
    version: int
    inspect: bool
    """Whether this client may look inside: layers, feature maps, preprocessing."""
    labels: list[str]


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


class AnswerTensor(Shape):
    """A tensor of an answer."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferAnswer(Shape):
    """An answer of the Open Inference Protocol, in its JSON form."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[AnswerTensor]


class TensorDescription(Shape):
    """An input or output; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ServerMetadata(Shape):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(Shape):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


class IndexEntry(Shape):
    """A model that takes requests."""

    name: str
    version: str
    state: str
    reason: str


class InferenceProtocolError(Shape):
    """A refusal in the Open Inference Protocol's form."""

    error: str
    code: str


class TorchServeError(Shape):
    """A refusal in TorchServe's form."""

    code: int
    type: str
    message: str

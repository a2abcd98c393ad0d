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

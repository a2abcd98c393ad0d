"""Requests, answers and retries of the Python client, shared by the sync and the async one."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from models import errors
from models.errors import (
    BadRequest,
    DataError,
    LoupeError,
    RateLimited,
    RequestError,
    ServiceUnreachable,
    Unavailable,
)
from models.pixels.endings import ENDINGS

JsonObject = Mapping[str, Any]
"""Any: what the service sends."""
Image = bytes | Path
"""An encoded image, or the file that holds it."""

PASSING = frozenset(
    (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
)
PASSING_ERRORS = (httpx.TransportError, Unavailable, RateLimited)
"""Errors after which a later try may succeed."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
MAX_RETRY_AFTER_DIGITS = 6
CLASSIFY = "/v1/classify"
OCTETS = {"Content-Type": "application/octet-stream"}
OPTIONS = frozenset(
    ("top_k", "threshold", "explain", "explain_class", "embedding", "model", "version")
)


@dataclass(frozen=True)
class Prediction:
    """One class of an answer."""

    label: str
    index: int
    """Position in the model's labels."""
    probability: float


@dataclass(frozen=True)
class Explanation:
    """Which part of the image is evidence for a class."""

    label: str
    index: int
    peak: float
    """Grad-CAM's value in the strongest cell."""
    grid: tuple[tuple[float, ...], ...] | None
    """Heat of each cell, 0 to 1, row by row from the top left; None unless asked for."""
    overlay_png: bytes | None
    """The model's input with the heat over it; None unless asked for."""


@dataclass(frozen=True)
class Answer:
    """The answer for one image."""

    model: str
    version: int
    predictions: tuple[Prediction, ...]
    """Likeliest first; with a threshold there may be none."""
    abstained: bool
    """Whether the probability is below the threshold in the model's manifest."""
    explanation: Explanation | None = None
    embedding: tuple[float, ...] | None = None

    @property
    def top(self) -> Prediction:
        """The likeliest class. Raises `IndexError` if a threshold left none."""
        return self.predictions[0]


@dataclass(frozen=True)
class ServedModel:
    """A model that takes requests."""

    name: str
    version: int


def read_answer(body: JsonObject, model: JsonObject) -> Answer:
    """The answer in *body*, which *model* gave."""
    predictions = tuple(
        Prediction(one["label"], one["index"], one["probability"]) for one in body["predictions"]
    )
    explanation = _explanation(body["explanation"]) if "explanation" in body else None
    embedding = tuple(body["embedding"]) if "embedding" in body else None
    return Answer(
        model["name"], model["version"], predictions, body["abstained"], explanation, embedding
    )


def read_results(body: JsonObject) -> list[Answer | LoupeError]:
    """One answer or error for each image of a request, of which there may be one only."""
    if "results" not in body:
        return [read_answer(body, body["model"])]
    return [
        to_error(one["error"]) if "error" in one else read_answer(one, body["model"])
        for one in body["results"]
    ]


def to_error(
    problem: JsonObject, *, status: int = 0, retry_after_s: float | None = None
) -> LoupeError:
    """The error of `models.errors` with the problem's `code`, or with *status* for a new code."""
    status = problem.get("status", status)
    request = f" (request {problem['request_id']})" if "request_id" in problem else ""
    message = f"{problem.get('detail', f'the service answered with status {status}')}{request}"
    is_client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    base = Unavailable if status in PASSING else RequestError if is_client_error else LoupeError
    error = _CLASSES.get(str(problem.get("code")), base)(message)
    if isinstance(error, Unavailable | RateLimited):
        error.retry_after_s = retry_after_s
    return error


def _explanation(body: JsonObject) -> Explanation:
    grid = tuple(tuple(row) for row in body["grid"]) if "grid" in body else None
    overlay = base64.b64decode(body["overlay_png"]) if "overlay_png" in body else None
    return Explanation(body["label"], body["index"], body["peak"], grid, overlay)


_CLASSES: Mapping[str, type[LoupeError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, RequestError | Unavailable)
    and "code" in vars(kind)
} | {BadRequest.code: BadRequest}
"""By code. `BadRequest` has the code of its base class."""


@dataclass(frozen=True)
class Policy:
    """How often and how long to try."""

    url: str
    retries: int
    patience_s: float

    def pause_s(self, error: Exception, *, tried: int, started_s: float) -> float:
        """How long to wait after *error*, before the next try.

        Raises *error*, or `ServiceUnreachable` for one of httpx, if there is no next try.
        """
        # Full jitter on our own pauses, but never less than the service asked for. So clients that
        # were refused together do not come back together.
        own_s = random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (tried - 1)))
        asked_s = getattr(error, "retry_after_s", None)
        pause_s = own_s if asked_s is None else asked_s + own_s / 4.0
        if tried <= self.retries and time.monotonic() - started_s + pause_s <= self.patience_s:
            return pause_s
        if isinstance(error, LoupeError):
            raise error
        raise ServiceUnreachable(
            f"no answer from {self.url}: {error or type(error).__name__}; is the service running,"
            " and is that its address?"
        ) from error


def image_files(folder: Path) -> Iterator[Path]:
    """Files in *folder* and below it with the ending of an image, sorted by path.

    Raises `DataError` if *folder* is no folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one with image files")
    return (
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS and path.is_file()
    )


def batches_of(images: Sequence[Image], size: int) -> list[Sequence[Image]]:
    """The *images* in parts of *size*. Raises `BadRequest`."""
    if size < 1:
        raise BadRequest(f"batch_size is {size}; expected 1 or more")
    return [images[start : start + size] for start in range(0, len(images), size)]


def encoded(image: Image) -> bytes:
    """The bytes of *image*. Raises `DataError` for a file that cannot be read."""
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise DataError(f"{image} cannot be read: {error.strerror}") from error


def form_of(images: Sequence[Image]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """*images* as parts of a form, for httpx."""
    return [
        ("image", (str(index), encoded(image), "application/octet-stream"))
        for index, image in enumerate(images)
    ]


def query_of(options: dict[str, Any]) -> dict[str, str]:
    """*options* as the route's query; True becomes `true`.

    Raises `BadRequest` for a name that it does not have.
    """
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise BadRequest(f"no option {unknown[0]!r}; expected {', '.join(sorted(OPTIONS))}")
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if value is not None
    }


def headers_of(token: str | None) -> dict[str, str]:
    """What every request carries."""
    return {"User-Agent": "loupe-client"} | (
        {} if token is None else {"Authorization": f"Bearer {token}"}
    )


def body_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of *response*.

    Raises the error that the service answered with, or `ServiceUnreachable` if the answer is not
    JSON: something else listens there.
    """
    body: Any = None
    with suppress(ValueError):
        body = response.json()
    if response.status_code != HTTPStatus.OK:
        after = response.headers.get("retry-after", "")
        is_seconds = after.isascii() and after.isdigit() and len(after) <= MAX_RETRY_AFTER_DIGITS
        raise to_error(
            body if isinstance(body, dict) else {},
            status=response.status_code,
            retry_after_s=float(after) if is_seconds else None,
        )
    if not isinstance(body, dict):
        raise ServiceUnreachable(
            f"{response.url} answered, but not with a JSON object; is it Loupe that listens there?"
        )
    return body

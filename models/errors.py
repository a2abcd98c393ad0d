"""Every error that Loupe raises on purpose, in one tree.

    LoupeError
    ├── RequestError                 the caller's request or image; 4xx
    │   ├── BadRequest               400 bad_request
    │   ├── EmptyBody                400 empty_body
    │   ├── MalformedBody            400 malformed_body
    │   ├── MalformedRequest         400 malformed_request
    │   ├── RequestTimeout           408 request_timeout
    │   ├── HeadTooLarge             431 head_too_large
    │   ├── UnknownModel             404 unknown_model
    │   ├── UnknownLayer             404 unknown_layer
    │   ├── UnknownRoute             404 unknown_route
    │   ├── InspectionOff            404 inspection_off
    │   ├── MethodNotAllowed         405 method_not_allowed
    │   ├── BodyTooLarge             413 body_too_large
    │   ├── Unauthorised             401 unauthorised
    │   ├── Forbidden                403 forbidden
    │   ├── TooManyImages            413 too_many_images
    │   ├── UnsupportedContentType   415 unsupported_content_type
    │   ├── OutputUnavailable        422 output_unavailable
    │   ├── RateLimited              429 rate_limited; with Retry-After
    │   └── ImageError               one image; never its neighbours'
    │       ├── UrlRefused           403 url_refused
    │       ├── ImageTooLarge        413 image_too_large
    │       ├── TooManyPixels        413 too_many_pixels
    │       ├── UnsupportedFormat    415 unsupported_format
    │       ├── UndecodableImage     422 undecodable_image
    │       ├── DecodeTimeout        422 decode_timeout
    │       └── UrlUnreachable       422 url_unreachable
    ├── Unavailable                  ours, and it will pass; 503 and 504, most with Retry-After
    │   ├── QueueFull                503 queue_full
    │   ├── TooBusy                  503 too_busy
    │   ├── NotReady                 503 not_ready
    │   └── DeadlineExceeded         504 deadline_exceeded
    ├── PackageError                 a model package that may not be served
    │   ├── ManifestInvalid          unreadable, a field missing, unknown or out of range
    │   ├── PackageTampered          a file missing, changed, or not listed
    │   ├── ModelInvalid             model.onnx itself: external data, opset, inputs or outputs
    │   └── GoldenMismatch           the session does not give the answers that training recorded
    ├── StoreError                   the store on disk: absent, read-only, full, no such version
    │   └── UnknownVersion
    ├── ServiceUnreachable           no answer at all came to `service.client`
    ├── RuntimeUnavailable           an execution provider that was asked for and is not there
    ├── DataError                    training data that cannot be trained on
    ├── TrainingError                a run that cannot continue
    ├── ExportError                  an export that did not pass its gates
    ├── ScoringError                 a batch-scoring job that cannot continue; its state is kept
    │   ├── TooManyFailures          more images failed than `--max-failures` allows
    │   └── StorageLost              a full disk, a bucket or folder that is gone
    └── ConfigError                  a setting, recipe or option that makes no sense

`status` and `code` sit on the class: HTTP answers are made from them, and nowhere else. `code` is
part of the public interface. A message says what was received, what was expected and how to fix it.
"""

from __future__ import annotations

from collections.abc import Sequence


class LoupeError(Exception):
    """Base of the tree. The message is written for the person who can put it right."""

    status: int = 500
    code: str = "internal_error"
    title: str = "Internal error"

    def __init_subclass__(
        cls, *, status: int | None = None, code: str | None = None, title: str | None = None
    ) -> None:
        """Inherit what the class statement does not give; *code* makes the title."""
        cls.status = status or cls.status
        cls.code = code or cls.code
        cls.title = title or (code.replace("_", " ").capitalize() if code else cls.title)


class RequestError(LoupeError, status=400, code="bad_request"):
    """The request cannot be answered as it was sent."""


class BadRequest(RequestError):
    """A parameter or header has a value that cannot be used."""


class EmptyBody(RequestError, code="empty_body"):
    """The body has no bytes."""


class MalformedBody(RequestError, code="malformed_body"):
    """The body is not the JSON, multipart or tensors that it is said to be."""


class MalformedRequest(RequestError, code="malformed_request"):
    """The bytes can be read as no HTTP request, or as several. The connection closes."""


class RequestTimeout(RequestError, status=408, code="request_timeout"):
    """The header of the request did not come in time. The connection closes."""


class HeadTooLarge(RequestError, status=431, code="head_too_large", title="Header too large"):
    """The header of the request has more bytes or fields than the service accepts.

    The connection closes.
    """


class UnknownModel(RequestError, status=404, code="unknown_model"):
    """No model of that name (or version) is served or stored."""


class UnknownLayer(RequestError, status=404, code="unknown_layer"):
    """The network has no layer of that name."""


class UnknownRoute(RequestError, status=404, code="unknown_route"):
    """No route at that path."""


class InspectionOff(RequestError, status=404, code="inspection_off"):
    """The service does not show the inside of its models."""


class MethodNotAllowed(RequestError, status=405, code="method_not_allowed"):
    """The route exists, but not for that method."""

    def __init__(self, message: str, *, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class BodyTooLarge(RequestError, status=413, code="body_too_large"):
    """The body has more bytes than the service accepts."""


class Unauthorised(RequestError, status=401, code="unauthorised"):
    """No API key came with the request, or none that is known."""


class Forbidden(RequestError, status=403, code="forbidden"):
    """The API key is known, but not for this."""


class RateLimited(RequestError, status=429, code="rate_limited"):
    """The client asks more often than it may."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyImages(RequestError, status=413, code="too_many_images"):
    """The body holds more images than one request may bring."""


class UnsupportedContentType(RequestError, status=415, code="unsupported_content_type"):
    """The content type is none of those that the route takes."""


class OutputUnavailable(RequestError, status=422, code="output_unavailable"):
    """The model has no such output: it was exported without, or never had one."""


class ImageError(RequestError):
    """One image cannot be used."""


class UrlRefused(ImageError, status=403, code="url_refused", title="URL refused"):
    """The service fetches no URLs, or not this one."""


class ImageTooLarge(ImageError, status=413, code="image_too_large"):
    """A side is longer than allowed; read from the header, before any pixel."""


class TooManyPixels(ImageError, status=413, code="too_many_pixels"):
    """Width times height is more than allowed; read from the header, before any pixel."""


class UnsupportedFormat(
    ImageError, status=415, code="unsupported_format", title="Unsupported image format"
):
    """Not one of the formats in the model's preprocessing spec."""


class UndecodableImage(ImageError, status=422, code="undecodable_image"):
    """The image has an accepted format, but is truncated or damaged."""


class DecodeTimeout(ImageError, status=422, code="decode_timeout"):
    """Decoding took longer than one image may take. The caller is told; the thread goes on."""


class UrlUnreachable(ImageError, status=422, code="url_unreachable", title="URL unreachable"):
    """The URL is allowed, but gave no image: refused, redirected, too slow or too large."""


class Unavailable(LoupeError, status=503, code="unavailable"):
    """The service cannot take this request now; the same request may pass later."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Unavailable, code="queue_full"):
    """No more images may wait: for everyone, or for this client."""


class TooBusy(Unavailable, code="too_busy"):
    """No answer could come in time, or bodies already fill their memory. Nothing was classified."""


class NotReady(Unavailable, code="not_ready"):
    """The model is not yet verified and warm, or the service is draining."""


class DeadlineExceeded(Unavailable, status=504, code="deadline_exceeded"):
    """The request's time ran out before its answer; work that had not started was dropped."""


class PackageError(LoupeError, code="package_refused"):
    """A model package that may not be served, with the reason."""


class ManifestInvalid(PackageError):
    """manifest.json cannot be read, or a field is missing, unknown or out of range."""


class PackageTampered(PackageError):
    """A file of the package is missing, changed, a link, or not listed in the manifest."""


class ModelInvalid(PackageError):
    """model.onnx cannot be served: external data, opset, inputs, outputs or weights."""


class GoldenMismatch(PackageError):
    """The session gives other answers to the golden images than training recorded."""


class StoreError(LoupeError):
    """The store on disk cannot do what was asked."""


class UnknownVersion(StoreError):
    """The store has no such version or alias of the model."""


class ServiceUnreachable(LoupeError):
    """The service gave no answer to its client: no connection, or it broke, or took too long."""


class RuntimeUnavailable(LoupeError):
    """An execution provider was asked for and cannot be had on this machine."""


class DataError(LoupeError):
    """The data cannot be trained or judged on."""


class TrainingError(LoupeError):
    """The run cannot continue."""


class ExportError(LoupeError):
    """The exported model did not pass a gate; nothing was written as a package."""


class ScoringError(LoupeError):
    """The scoring job stops. Its answers are kept, and `--resume` continues it."""

    exit_status: int = 1


class TooManyFailures(ScoringError):
    """More images failed than `--max-failures` allows."""

    exit_status = 3


class StorageLost(ScoringError):
    """The job's input or output cannot be reached, or its disk is full."""

    exit_status = 4


class ConfigError(LoupeError):
    """A setting, recipe or option has a value that makes no sense."""

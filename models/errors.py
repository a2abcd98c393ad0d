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
    │   ├── UnknownRoute             404 unknown_route
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
    │   ├── ModelInvalid             model.onnx itself: external data, wrong opset, wrong inputs or
    outputs
    │   └── GoldenMismatch           the session does not give the answers that training recorded
    ├── StoreError                   the store on disk: absent, read-only, full, no such version
    │   └── UnknownVersion
    ├── ServiceUnreachable           no answer at all came to `service.client`
    ├── RuntimeUnavailable           an execution provider that was asked for and is not there
    ├── DataError                    training data that cannot be trained on
    ├── TrainingError                a run that cannot go on
    ├── ExportError                  an export that did not pass its gates
    ├── ScoringError                 a batch-scoring job that cannot go on; its state is kept
    │   ├── TooManyFailures          more images failed than `--max-failures` allows
    │   └── StorageLost              a full disk, a bucket or folder that is gone
    └── ConfigError                  a setting, recipe or option that makes no sense

`status` and `code` sit on the class: HTTP answers are made from them, and nowhere else. `code` is
part of the public interface. A message says what was received, what was expected and how to put it
right.
"""

from __future__ import annotations

from collections.abc import Sequence


class LoupeError(Exception):
    """Base of the tree. The message is written for the person who can put it right."""

    status: int = 500
    code: str = "internal_error"
    title: str = "Internal error"


class RequestError(LoupeError):
    """The request cannot be answered as it was sent."""

    status = 400
    code = "bad_request"
    title = "Bad request"


class BadRequest(RequestError):
    """A parameter or header has a value that cannot be used."""


class EmptyBody(RequestError):
    """The body has no bytes."""

    code = "empty_body"
    title = "Empty body"


class MalformedBody(RequestError):
    """The body is not the JSON, multipart or tensors that it is said to be."""

    code = "malformed_body"
    title = "Malformed body"


class MalformedRequest(RequestError):
    """The bytes are not one HTTP request that can be read in one way only. The connection closes."""

    code = "malformed_request"
    title = "Malformed request"


class RequestTimeout(RequestError):
    """The header of the request did not come in time. The connection closes."""

    status = 408
    code = "request_timeout"
    title = "Request timeout"


class HeadTooLarge(RequestError):
    """The header of the request has more bytes or fields than the service accepts.

    The connection closes.
    """

    status = 431
    code = "head_too_large"
    title = "Header too large"


class UnknownModel(RequestError):
    """No model of that name (or version) is served or stored."""

    status = 404
    code = "unknown_model"
    title = "Unknown model"


class UnknownLayer(RequestError):
    """The network has no layer of that name."""

    status = 404
    code = "unknown_layer"
    title = "Unknown layer"


class UnknownRoute(RequestError):
    """No route at that path."""

    status = 404
    code = "unknown_route"
    title = "Unknown route"


class MethodNotAllowed(RequestError):
    """The route exists, but not for that method."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"

    def __init__(self, message: str, *, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class BodyTooLarge(RequestError):
    """The body has more bytes than the service accepts."""

    status = 413
    code = "body_too_large"
    title = "Body too large"


class Unauthorised(RequestError):
    """No API key came with the request, or none that is known."""

    status = 401
    code = "unauthorised"
    title = "Unauthorised"


class Forbidden(RequestError):
    """The API key is known, but not for this."""

    status = 403
    code = "forbidden"
    title = "Forbidden"


class RateLimited(RequestError):
    """The client asks more often than it may."""

    status = 429
    code = "rate_limited"
    title = "Rate limited"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyImages(RequestError):
    """The body holds more images than one request may bring."""

    status = 413
    code = "too_many_images"
    title = "Too many images"


class UnsupportedContentType(RequestError):
    """The content type is none of those that the route takes."""

    status = 415
    code = "unsupported_content_type"
    title = "Unsupported content type"


class OutputUnavailable(RequestError):
    """The model has no such output: it was exported without, or never had one."""

    status = 422
    code = "output_unavailable"
    title = "Output unavailable"


class ImageError(RequestError):
    """One image cannot be used."""


class UrlRefused(ImageError):
    """The service fetches no URLs, or not this one."""

    status = 403
    code = "url_refused"
    title = "URL refused"


class ImageTooLarge(ImageError):
    """A side is longer than allowed; read from the header, before any pixel."""

    status = 413
    code = "image_too_large"
    title = "Image too large"


class TooManyPixels(ImageError):
    """Width times height is more than allowed; read from the header, before any pixel."""

    status = 413
    code = "too_many_pixels"
    title = "Too many pixels"


class UnsupportedFormat(ImageError):
    """Not one of the formats in the model's preprocessing spec."""

    status = 415
    code = "unsupported_format"
    title = "Unsupported image format"


class UndecodableImage(ImageError):
    """Claims to be an image of an accepted format, but is truncated or damaged."""

    status = 422
    code = "undecodable_image"
    title = "Undecodable image"


class DecodeTimeout(ImageError):
    """Decoding took longer than one image may: it was given up."""

    status = 422
    code = "decode_timeout"
    title = "Decode timeout"


class UrlUnreachable(ImageError):
    """The URL is allowed, but gave no image: refused, redirected, too slow or too large."""

    status = 422
    code = "url_unreachable"
    title = "URL unreachable"


class Unavailable(LoupeError):
    """The service cannot take this request now; the same request may pass later."""

    status = 503
    code = "unavailable"
    title = "Unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Unavailable):
    """The queue holds as many items as it may."""

    code = "queue_full"
    title = "Queue full"


class TooBusy(Unavailable):
    """An answer could not come in time, or the bodies that are being received fill the memory that
    they may: refused before it is read.
    """

    code = "too_busy"
    title = "Too busy"


class NotReady(Unavailable):
    """The model is not yet verified and warm, or the service is draining."""

    code = "not_ready"
    title = "Not ready"


class DeadlineExceeded(Unavailable):
    """The request's time ran out before its answer; work that had not started was dropped."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"


class PackageError(LoupeError):
    """A model package that may not be served, with the reason."""

    code = "package_refused"
    title = "Package refused"


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
    """The run cannot go on."""


class ExportError(LoupeError):
    """The exported model did not pass a gate; nothing was written as a package."""


class ScoringError(LoupeError):
    """The job of `loupe score` ends here. What is answered is kept, and `--resume` goes on."""

    exit_status: int = 1


class TooManyFailures(ScoringError):
    """More images failed than the job may lose."""

    exit_status = 3


class StorageLost(ScoringError):
    """What the job reads from or writes to cannot be reached, or is full."""

    exit_status = 4


class ConfigError(LoupeError):
    """A setting, recipe or option has a value that makes no sense."""

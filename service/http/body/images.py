"""The images of a request body: the body itself, the fields of a form, or a JSON document."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from models.errors import (
    BadRequest,
    BodyTooLarge,
    EmptyBody,
    MalformedBody,
    RequestError,
    TooManyImages,
    UndecodableImage,
    UnsupportedContentType,
    UrlRefused,
)
from service.http.body.base64_text import decode_base64
from service.http.body.multipart import MULTIPART_TYPE, FormReader, Part
from service.http.body.reading import content_type, feed_body, parse_json, read_body
from service.http.options import PARAMETERS
from service.settings import ServiceSettings

JSON_FORM = '{"images": [{"b64": "..."}]}'
IMAGE_FIELD = re.compile(r"(images?|files?|data)(\[[0-9]{0,5}\])?", re.IGNORECASE)
"""Names of form fields with images: `image`, `file`, `data`, `images`, `images[]`, `files[0]`."""
IMAGE_FIELDS = "image, file, data, images or images[]"
JSON_TYPES = ("/json", "+json")
"""Ends of the media types of JSON: `application/json`, `application/vnd.api+json`."""
URL_STARTS = ("http://", "https://")
FIELDS_NAMED = 8
"""How many of the received fields an error names."""


@dataclass(frozen=True)
class Url:
    """An image to be fetched."""

    url: str


Source = bytes | Url | RequestError
"""An encoded image, its address, or why this one cannot be used. The others still can."""


def require_known_type(request: Request) -> str:
    """The media type of the body. Raises `UnsupportedContentType` for a multipart body but a form.

    It only tells a form or JSON from an image. The format of an image is read from its bytes.
    """
    given = content_type(request)
    if given.startswith("multipart/") and given != MULTIPART_TYPE:
        raise UnsupportedContentType(
            f"content type {given[:80]!r} is not taken; send the image itself as the body, or a"
            f" form as {MULTIPART_TYPE}"
        )
    return given


async def read_images(
    request: Request, settings: ServiceSettings, *, deadline: float
) -> list[Source]:
    """The images of the body, in order, at least one.

    Raises `RequestError` if the request as a whole cannot be used.
    """
    given, content = await _read(request, settings, deadline=deadline)
    if isinstance(content, list):
        return [*images_of_fields(content, max_images=settings.max_images)]
    return images_of_json(content, settings) if given.endswith(JSON_TYPES) else [content]


async def read_fields(
    request: Request, settings: ServiceSettings, *, deadline: float
) -> list[Part] | bytes:
    """The fields of a form or of a JSON object; for any other body, its bytes: one image.

    Raises `RequestError`.
    """
    given, content = await _read(request, settings, deadline=deadline)
    if isinstance(content, list) or not given.endswith(JSON_TYPES):
        return content
    if not content:
        raise EmptyBody('the body has no bytes; expected the image itself, or {"image": "BASE64"}')
    document = parse_json(content)
    if not isinstance(document, dict):
        raise MalformedBody('expected a JSON object, as {"image": "BASE64"}')
    # As a form would have them: text as it is, any other value as JSON.
    return [
        Part(
            name,
            (
                value
                if isinstance(value, str) and IMAGE_FIELD.fullmatch(name)
                else json.dumps(value)
            ).encode("utf-8", errors="replace"),
            file_name=None,
        )
        for name, value in document.items()
    ]


async def _read(
    request: Request, settings: ServiceSettings, *, deadline: float
) -> tuple[str, list[Part] | bytes]:
    """The media type of the body, and the parts of a form or the bytes of any other body."""
    given, limit = require_known_type(request), settings.max_body_bytes
    if given != MULTIPART_TYPE:
        return given, await read_body(request, limit=limit, deadline=deadline)
    reader = FormReader(
        request.headers["content-type"],
        max_images=settings.max_images,
        max_part_bytes=settings.max_image_bytes,
    )
    await feed_body(request, reader.feed, limit=limit, deadline=deadline)
    return given, reader.parts()


def image_of(found: list[Part] | bytes) -> bytes:
    """The one image of what `read_fields` gave. Raises `RequestError`."""
    if isinstance(found, bytes):
        return found
    (image,) = images_of_fields(found, max_images=1)
    if isinstance(image, RequestError):
        raise image
    return image


def images_of_fields(parts: Sequence[Part], *, max_images: int) -> list[bytes | RequestError]:
    """The images in the fields of a form, in order.

    These are all fields named as `IMAGE_FIELD` says, or else the only file, whatever its name.
    Raises `RequestError` that lists the fields received.
    """
    given = [part for part in parts if part.content or part.file_name != ""]
    named = [part for part in given if is_image_field(part)]
    files = [part for part in given if part.file_name is not None and not is_image_field(part)]
    for part in given:
        if part.file_name is None and part.name in PARAMETERS:
            raise BadRequest(
                f"the form has the field {part.name!r}; options belong into the query, as"
                f" ?{part.name}=..."
            )
    if (named and files) or not (named or len(files) == 1):
        expected = f"expected images in fields called {IMAGE_FIELDS}, or one file in any field"
        raise (BadRequest if given else EmptyBody)(
            f"{expected}; received {_received(parts)}: `curl -F image=@photo.jpg`"
        )
    _require_few(len(named or files), max_images)
    return [
        _image_of_text(part) if part.file_name is None else part.content for part in named or files
    ]


def is_image_field(part: Part) -> bool:
    """Whether *part* has one of the names of `IMAGE_FIELD`."""
    return IMAGE_FIELD.fullmatch(part.name) is not None


def images_of_json(body: bytes, settings: ServiceSettings) -> list[Source]:
    """The images of a JSON body. Damaged base64 fails only its own item. Raises `RequestError`."""
    if not body:
        raise EmptyBody(f"the body has no bytes; expected {JSON_FORM}")
    document = parse_json(body)
    if (
        not isinstance(document, dict)
        or set(document) != {"images"}
        or not isinstance(document["images"], list)
    ):
        raise MalformedBody(
            f"expected a JSON object with the list `images` and nothing else, as {JSON_FORM};"
            " options belong into the query"
        )
    items = document["images"]
    if not items:
        raise EmptyBody(f"the list `images` is empty; expected one image or more, as {JSON_FORM}")
    _require_few(len(items), settings.max_images)
    return [
        _source(item, place=f"images[{index}]", max_bytes=settings.max_image_bytes)
        for index, item in enumerate(items)
    ]


def _image_of_text(part: Part) -> bytes | RequestError:
    """The image in a text field: base64, or the bytes themselves. No image format is all ASCII."""
    if not part.content.isascii():
        return part.content
    text = part.content.decode("ascii")
    if text[:8].lower().startswith(URL_STARTS):
        return UrlRefused(
            f"the field {part.name[:40]!r} holds a URL; this route fetches none: send the file"
            " itself"
        )
    return _decoded(
        text,
        place=f"the field {part.name[:40]!r}",
        hint="; send the file itself: `curl -F image=@photo.jpg`, with the @",
    )


def _source(item: object, *, place: str, max_bytes: int) -> Source:
    match item:
        case {"b64": str(text), **rest} if not rest:
            found = _decoded(text, place=place)
            if isinstance(found, bytes) and len(found) > max_bytes:
                return BodyTooLarge(
                    f"{place} has {len(found):,} bytes; at most {max_bytes:,} are taken for one"
                    " image"
                )
            return found
        case {"url": str(text), **rest} if not rest:
            return Url(text)
        case _:
            raise MalformedBody(
                f'{place} is {reprlib.repr(item)}; expected an object as {{"b64": "..."}} or'
                ' {"url": "https://..."}'
            )


def _decoded(text: str, *, place: str, hint: str = "") -> bytes | RequestError:
    try:
        encoded = decode_base64(text)
    except ValueError as error:
        return UndecodableImage(f"{place} is no base64 ({error}){hint}")
    return encoded or EmptyBody(f"{place} has no bytes; expected an encoded image")


def _require_few(count: int, max_images: int) -> None:
    if count > max_images:
        raise TooManyImages(
            f"the request has {count} images; at most {max_images} are taken in one: send several"
            " requests"
        )


def _received(parts: Sequence[Part]) -> str:
    kinds = [
        "text" if part.file_name is None else "a file" if part.content else "an empty file"
        for part in parts[:FIELDS_NAMED]
    ]
    named = ", ".join(
        f"{part.name[:40]!r} ({kind})" for part, kind in zip(parts, kinds, strict=False)
    )
    more = f" and {len(parts) - FIELDS_NAMED} more" if len(parts) > FIELDS_NAMED else ""
    return f"{named}{more}" if named else "no fields"

"""The images of a request body: the body itself, the parts of a form, or a JSON document."""

from __future__ import annotations

import base64
import binascii
import reprlib
from dataclasses import dataclass

from starlette.requests import Request

from models.errors import BadRequest, BodyTooLarge, EmptyBody, MalformedBody, RequestError, TooManyImages, UndecodableImage, UnsupportedContentType
from service.routes.multipart import MULTIPART_TYPE, FormReader, Part
from service.routes.reading import content_type, feed_body, parse_json, read_body
from service.settings import ServiceSettings

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
CURL_DEFAULT_TYPE = "application/x-www-form-urlencoded"
"""What `curl --data-binary` calls any body. The bytes are examined either way, so it is let through as octets."""
JSON_TYPE = "application/json"
JSON_FORM = '{"images": [{"b64": "..."}]}'
IMAGE_FIELD = "image"


@dataclass(frozen=True)
class Url:
    """An image that lies elsewhere."""

    url: str


Source = bytes | Url | RequestError
"""An encoded image, where to fetch it, or why this one cannot be used while its neighbours can."""


def require_known_type(request: Request, *, form: bool = True, json: bool = True) -> str:
    """The content type of the body. Raises `UnsupportedContentType` if it is none of those that are taken."""
    given = content_type(request)
    taken = (*IMAGE_TYPES, *((MULTIPART_TYPE,) if form else ()), *((JSON_TYPE,) if json else ()))
    if given and given not in (*taken, CURL_DEFAULT_TYPE):
        raise UnsupportedContentType(f"content type {given[:80]!r} is not taken; send the image itself as {', '.join(IMAGE_TYPES)}{_or_else(taken)}")
    return given


async def read_images(request: Request, settings: ServiceSettings, *, deadline: float) -> list[Source]:
    """The images of the body, in order, one at least. Raises `RequestError` where the request as a whole cannot be used."""
    given = require_known_type(request)
    if given == MULTIPART_TYPE:
        parts = await read_form(request, settings, deadline=deadline)
        return list(image_parts(parts, field=IMAGE_FIELD, max_images=settings.max_images))
    body = await read_body(request, limit=settings.max_body_bytes, deadline=deadline)
    return images_of_json(body, settings) if given == JSON_TYPE else [body]


async def read_form(request: Request, settings: ServiceSettings, *, deadline: float) -> list[Part]:
    """The parts of a form, within the limits of *settings*. Raises `RequestError`."""
    reader = FormReader(request.headers["content-type"], max_images=settings.max_images, max_part_bytes=settings.max_image_bytes)
    await feed_body(request, reader.feed, limit=settings.max_body_bytes, deadline=deadline)
    return reader.parts()


def image_parts(parts: list[Part], *, field: str, max_images: int) -> list[bytes]:
    """The contents of *parts*, all of which must be called *field*. Raises `RequestError`."""
    for number, part in enumerate(parts, start=1):
        if part.name != field:
            raise BadRequest(
                f"part {number} of the form is called {part.name[:40]!r}; expected {field!r}. Options belong into the query, as ?top_k=3"
            )
    if not parts:
        raise EmptyBody(f"the form has no parts; send one or more images in parts called {field!r}, such as `curl -F {field}=@photo.jpg`")
    _require_few(len(parts), max_images)
    return [part.content for part in parts]


def images_of_json(body: bytes, settings: ServiceSettings) -> list[Source]:
    """The images of a JSON body. An item whose base64 is damaged is its own error. Raises `RequestError`."""
    if not body:
        raise EmptyBody(f"the body has no bytes; expected {JSON_FORM}")
    document = parse_json(body)
    if not isinstance(document, dict) or set(document) != {"images"} or not isinstance(document["images"], list):
        raise MalformedBody(f"expected a JSON object with the list `images` and nothing else, as {JSON_FORM}; options belong into the query")
    items = document["images"]
    if not items:
        raise EmptyBody(f"the list `images` is empty; expected one image or more, as {JSON_FORM}")
    _require_few(len(items), settings.max_images)
    return [_source(item, place=f"images[{index}]", max_bytes=settings.max_image_bytes) for index, item in enumerate(items)]


def _source(item: object, *, place: str, max_bytes: int) -> Source:
    match item:
        case {"b64": str(text), **rest} if not rest:
            return decode_base64(text, place=place, max_bytes=max_bytes)
        case {"url": str(text), **rest} if not rest:
            return Url(text)
        case _:
            raise MalformedBody(f'{place} is {reprlib.repr(item)}; expected an object as {{"b64": "..."}} or {{"url": "https://..."}}')


def decode_base64(text: str, *, place: str, max_bytes: int) -> bytes | RequestError:
    """The bytes that *text* stands for, or why it stands for none."""
    if len(text) * 3 // 4 > max_bytes + 2:
        return BodyTooLarge(f"{place} has about {len(text) * 3 // 4:,} bytes; at most {max_bytes:,} are taken for one image")
    try:
        encoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = ": send what stands behind the comma of the data URL" if text.startswith("data:") else ""
        return UndecodableImage(f"{place} is no base64 ({error}){hint}")
    return encoded or EmptyBody(f"{place} has no bytes; expected an encoded image")


def _require_few(count: int, max_images: int) -> None:
    if count > max_images:
        raise TooManyImages(f"the request has {count} images; at most {max_images} are taken in one: send several requests")


def _or_else(taken: tuple[str, ...]) -> str:
    more = [one for one in taken if one not in IMAGE_TYPES]
    return f", or images as {' or '.join(more)}" if more else ""

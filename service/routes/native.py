"""`POST /classify` and `/schema.json`: what BentoML's own client calls. Routes of ours, and no `@bentoml.api`.

BentoML's file inputs fetch any URL that a client sends in place of a file; here such text is refused.
"""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import BadRequest, EmptyBody, MalformedBody, UnsupportedContentType, UrlRefused
from service.metrics import METRICS
from service.routes.answering import answer_one, model_body, timing_ms
from service.routes.images import IMAGE_TYPES, read_form
from service.routes.multipart import MULTIPART_TYPE, Part
from service.routes.options import DEFAULT_TOP_K, MAX_TOP_K, read_options
from service.routes.reading import client_key, content_type, parse_json, read_body, unless_client_leaves
from service.worker import Worker

IMAGE = "image"
OPTIONS = {
    "top_k": {"type": "integer", "default": DEFAULT_TOP_K, "minimum": 1, "maximum": MAX_TOP_K},
    "threshold": {"type": "number", "default": 0.0, "minimum": 0.0, "maximum": 1.0},
    "model": {"type": "string", "default": ""},
    "version": {"type": "string", "default": ""},
}
"""Fields of the form beside the image, as JSON schema; the client sends each as JSON."""
SCHEMA = {
    "name": "Loupe",
    "type": "service",
    "routes": [
        {
            "name": "classify",
            "route": "/classify",
            "doc": "The likeliest classes of an image file.",
            "input": {
                "title": "Input",
                "type": "object",
                "properties": {IMAGE: {"type": "file", "format": "binary", "title": "Image"}, **OPTIONS},
                "required": [IMAGE],
            },
            "output": {"title": "Output", "type": "object"},
        }
    ],
}


async def show_schema(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /schema.json`: what `POST /classify` takes. BentoML has this route too, for `@bentoml.api` methods alone."""
    return JSONResponse(SCHEMA)


async def classify_natively(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /classify`: the image in the part `image` of a form, with options in other parts; or as the body itself."""
    arrived = time.monotonic()
    settings = worker.settings
    deadline = arrived + settings.deadline_ms / 1000.0
    given = content_type(request)
    if given not in (MULTIPART_TYPE, *IMAGE_TYPES):
        # A form without a file is what BentoML's client makes of a URL.
        raise UnsupportedContentType(
            f"content type {given[:80]!r} is not taken; send the image as a file in {MULTIPART_TYPE}: URLs are not fetched here"
        )
    client = client_key(request)
    worker.pipeline(client=client).admit(deadline=deadline, client=client)
    if given == MULTIPART_TYPE:
        encoded, fields = _image_and_fields(await read_form(request, settings, deadline=deadline))
    else:
        encoded, fields = await read_body(request, limit=settings.max_body_bytes, deadline=deadline), {}
    read_s = time.monotonic() - arrived
    METRICS.stage("read", read_s)
    pipeline = worker.pipeline(fields.get("model"), fields.get("version"), client=client)
    options = read_options(fields, pipeline.classifier)
    work = answer_one(pipeline, encoded, options, settings=settings, deadline=deadline, client=client)
    answer, timing = await unless_client_leaves(request.receive, work)
    times = timing_ms(timing, read_s=read_s, total_s=time.monotonic() - arrived)
    return JSONResponse({"model": model_body(pipeline.classifier), **answer, "request_id": request_id, "timing_ms": times})


def _image_and_fields(parts: list[Part]) -> tuple[bytes, dict[str, str]]:
    """The image, and the options as the query would have them. Raises `RequestError`."""
    images = [part.content for part in parts if part.name == IMAGE]
    if len(images) != 1:
        raise (BadRequest if images else EmptyBody)(f"the form has {len(images)} parts called {IMAGE!r}; expected one, with the file")
    if images[0][:8].lower().startswith((b"http://", b"https://")):
        raise UrlRefused("the part 'image' is a URL; this route fetches none: send the file itself")
    return images[0], {name: text for part in parts if part.name != IMAGE for name, text in [_field(part)] if text}


def _field(part: Part) -> tuple[str, str]:
    if part.name not in OPTIONS:
        raise BadRequest(f"the form has a part called {part.name[:40]!r}; expected {IMAGE}, {', '.join(OPTIONS)}")
    value = parse_json(part.content)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedBody(f"the part {part.name!r} is no JSON text or number")
    return part.name, str(value)

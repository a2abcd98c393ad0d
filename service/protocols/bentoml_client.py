"""`POST /classify` and `/schema.json`: what BentoML's own client calls.

They are not `@bentoml.api` methods: those fetch any URL that a client sends instead of a file.
Here such text is refused.
"""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import BadRequest, MalformedBody, UnsupportedContentType
from service.http.answering import answer
from service.http.body.images import image_of, is_image_field, read_fields, require_known_type
from service.http.body.multipart import MULTIPART_TYPE, Part
from service.http.body.reading import parse_json
from service.http.options import PARAMETERS, read_options
from service.observe.logs import client_of
from service.rollout.worker import Worker

IMAGE = "image"
URL_FORM = b"image="
"""Beginning of a form as `application/x-www-form-urlencoded`, which holds no file."""
OPTIONS = {name: PARAMETERS[name] for name in ("top_k", "threshold", "model", "version")}
"""Fields of the form besides the image, as JSON schema. The client sends each as JSON."""
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
                "properties": {
                    IMAGE: {"type": "file", "format": "binary", "title": "Image"},
                    **OPTIONS,
                },
                "required": [IMAGE],
            },
            "output": {"title": "Output", "type": "object"},
        }
    ],
}


async def show_schema(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /schema.json`: what `POST /classify` takes.

    BentoML has this route too, for `@bentoml.api` methods alone.
    """
    return JSONResponse(SCHEMA)


async def classify_natively(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /classify`: the image as the body, or in a form or a JSON object beside its options."""
    arrived = time.monotonic()
    settings, client = worker.settings, client_of(request.scope)
    deadline = arrived + settings.deadline_ms / 1000.0
    require_known_type(request)
    worker.pipeline(client=client).admit(deadline=deadline, client=client)
    image, given = _image_and_options(await read_fields(request, settings, deadline=deadline))
    pipeline = worker.pipeline(given.get("model"), given.get("version"), client=client)
    return await answer(
        request,
        worker,
        pipeline,
        [image],
        read_options(given, pipeline.classifier),
        request_id=request_id,
        arrived=arrived,
        deadline=deadline,
    )


def _image_and_options(found: list[Part] | bytes) -> tuple[bytes, dict[str, str]]:
    """The image, and the options as the query would have them. Raises `RequestError`."""
    if isinstance(found, bytes):
        if found.startswith(URL_FORM):
            # BentoML's client sends this for a URL.
            raise UnsupportedContentType(
                f"the body is a form without a file; send the image as {MULTIPART_TYPE}: URLs are"
                " not fetched here"
            )
        return found, {}
    options = [part for part in found if part.file_name is None and not is_image_field(part)]
    image = image_of([part for part in found if part.file_name is not None or is_image_field(part)])
    return image, {name: text for name, text in map(_option, options) if text}


def _option(part: Part) -> tuple[str, str]:
    if part.name not in OPTIONS:
        raise BadRequest(
            f"the form has a part called {part.name[:40]!r}; expected {IMAGE}, {', '.join(OPTIONS)}"
        )
    value = parse_json(part.content)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedBody(f"the part {part.name!r} is not JSON text or a number")
    return part.name, str(value)

"""`/openapi.json`: the document of all routes (OpenAPI 3.1), written from the error tree and the
schemas.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from models import errors
from models.errors import LoupeError
from service.http import schemas
from service.http.body.multipart import MULTIPART_TYPE
from service.http.options import DEFAULT_TOP_K, EXPLANATIONS, MAX_TOP_K
from service.problems import PROBLEM_TYPE

Json = dict[str, Any]
"""Any: OpenAPI's own shapes."""

COMPONENTS = "#/components/schemas/"
IMAGE_TYPES = ("image/*", "application/octet-stream")
JSON_TYPE = "application/json"
BINARY: Json = {"type": "string", "format": "binary"}
TEXT: Json = {"type": "string"}
LOOKUP = (errors.UnknownModel, errors.NotReady)
ANSWERING = (
    errors.BadRequest,
    errors.EmptyBody,
    errors.MalformedBody,
    errors.UrlRefused,
    errors.UnknownModel,
    errors.BodyTooLarge,
    errors.UnsupportedContentType,
    errors.UndecodableImage,
    LoupeError,
    errors.QueueFull,
    errors.DeadlineExceeded,
)
"""One of each status that a request with an image may get."""


def openapi_document(*, prefix: str = "") -> Json:
    """The document, of a service under the path *prefix*.

    Its paths are the routes of `service.http.app.create_app`, as a test compares.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Loupe",
            "version": "1",
            "summary": "Image classification over HTTP",
            "description": (
                "Errors are `application/problem+json`; decide by `code`. The paths under `/v2` and"
                " `/predictions` speak the Open Inference Protocol and TorchServe's interface, with"
                " their forms of errors."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"}],
        "paths": {**_own_paths(), **_inference_protocol_paths(), **_other_paths()},
        "components": {"schemas": _components()},
    }


def _own_paths() -> Json:
    image = {"schema": BINARY}
    body = {
        **dict.fromkeys(IMAGE_TYPES, image),
        MULTIPART_TYPE: {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": BINARY}},
                "required": ["image"],
            }
        },
        JSON_TYPE: {"schema": _ref(schemas.Images)},
    }
    either = {"oneOf": [_ref(schemas.Answer), _ref(schemas.Answers)]}
    return {
        "/v1/classify": {
            "post": _operation(
                "classify",
                "The likeliest classes of one or more images",
                parameters=_options(),
                body=body,
                answer={JSON_TYPE: {"schema": either}},
                refusals=(*ANSWERING, errors.OutputUnavailable),
            )
        },
        "/v1/models": {
            "get": _operation(
                "listModels",
                "What is served",
                answer=_json(schemas.ModelList),
                refusals=(errors.NotReady,),
            )
        },
        "/v1/models/{name}": {
            "get": _operation(
                "showModel",
                "The public part of a model's manifest",
                parameters=[_name()],
                answer=_json(schemas.ModelDetails),
                refusals=LOOKUP,
            )
        },
    }


def _inference_protocol_paths() -> Json:
    v2 = schemas.InferenceProtocolError

    def both(suffix: str, method: str, name: str, summary: str, **parts: Any) -> Json:
        plain = _operation(name, summary, parameters=[_name()], form=v2, **parts)
        versioned = _operation(
            f"{name}Version",
            f"{summary}, in a version",
            parameters=[_name(), _version()],
            form=v2,
            **parts,
        )
        return {
            f"/v2/models/{{name}}{suffix}": {method: plain},
            f"/v2/models/{{name}}/versions/{{version}}{suffix}": {method: versioned},
        }

    state = {JSON_TYPE: {"schema": {"type": "object"}}}
    infer_body = {
        JSON_TYPE: {"schema": _ref(schemas.InferRequest)},
        "application/octet-stream": {"schema": BINARY},
    }
    infer_answer = {
        JSON_TYPE: {"schema": _ref(schemas.InferAnswer)},
        "application/octet-stream": {"schema": BINARY},
    }
    index = {JSON_TYPE: {"schema": {"type": "array", "items": _ref(schemas.IndexEntry)}}}
    return {
        "/v2": {
            "get": _operation(
                "serverMetadata",
                "What the server is",
                answer=_json(schemas.ServerMetadata),
                form=v2,
            )
        },
        "/v2/health/live": {"get": _operation("live", "It answers", answer=state, form=v2)},
        "/v2/health/ready": {
            "get": _operation(
                "ready", "Models take requests", answer=state, refusals=(errors.NotReady,), form=v2
            )
        },
        **both(
            "",
            "get",
            "modelMetadata",
            "Inputs and outputs of a model",
            answer=_json(schemas.ModelMetadata),
            refusals=LOOKUP,
        ),
        **both(
            "/ready", "get", "modelReady", "The model takes requests", answer=state, refusals=LOOKUP
        ),
        **both(
            "/infer",
            "post",
            "infer",
            "Outputs of the graph for a batch",
            body=infer_body,
            answer=infer_answer,
            refusals=ANSWERING,
        ),
        "/v2/repository/index": {
            "post": _operation(
                "repositoryIndex",
                "The models that take requests",
                answer=index,
                refusals=(errors.NotReady,),
                form=v2,
            )
        },
    }


def _other_paths() -> Json:
    torchserve = schemas.TorchServeError
    probabilities = {
        JSON_TYPE: {"schema": {"type": "object", "additionalProperties": {"type": "number"}}}
    }
    one_image = _one_image("data")

    def predict(name: str, method: str, parameters: list[Json]) -> Json:
        summary = "The five likeliest classes, as TorchServe's image classifier answers"
        return _operation(
            f"{name}{method.title()}",
            summary,
            parameters=parameters,
            body=one_image,
            answer=probabilities,
            refusals=ANSWERING,
            form=torchserve,
        )

    return {
        "/predictions/{name}": {
            method: predict("predict", method, [_name()]) for method in ("post", "put")
        },
        "/predictions/{name}/{version}": {
            method: predict("predictVersion", method, [_name(), _version()])
            for method in ("post", "put")
        },
        "/ping": {
            "get": _operation(
                "ping",
                "Models take requests",
                answer={JSON_TYPE: {"schema": {"type": "object"}}},
                refusals=(errors.NotReady,),
            )
        },
        "/classify": {
            "post": _operation(
                "classifyNatively",
                "What bentoml.SyncHTTPClient calls",
                body=_one_image("image"),
                answer=_json(schemas.Answer),
                refusals=ANSWERING,
            )
        },
        "/metrics": {
            "get": _operation(
                "metrics",
                "Prometheus text, of all workers",
                answer={"text/plain": {"schema": TEXT}},
            )
        },
        "/schema.json": {
            "get": _operation(
                "schema",
                "What `POST /classify` takes, for BentoML's client",
                answer={JSON_TYPE: {"schema": {"type": "object"}}},
            )
        },
        "/openapi.json": {
            "get": _operation(
                "openapi", "This document", answer={JSON_TYPE: {"schema": {"type": "object"}}}
            )
        },
        "/docs": {
            "get": _operation(
                "docs", "This document as a page", answer={"text/html": {"schema": TEXT}}
            )
        },
        "/docs/": {
            "get": {
                "operationId": "docsSlash",
                "summary": "The way to /docs",
                "responses": {"307": {"description": "Temporary Redirect"}},
            }
        },
        "/docs/{file}": {
            "get": _operation(
                "docsFile",
                "What that page is made of",
                parameters=[{"name": "file", "in": "path", "required": True, "schema": TEXT}],
                answer={kind: {"schema": TEXT} for kind in ("text/javascript", "text/css")},
                refusals=(errors.UnknownRoute,),
            )
        },
        "/": {
            "get": _operation(
                "playground", "A page to drop a photo on", answer={"text/html": {"schema": TEXT}}
            )
        },
    }


def _operation(
    name: str,
    summary: str,
    *,
    answer: Json,
    parameters: list[Json] | None = None,
    body: Json | None = None,
    refusals: tuple[type[LoupeError], ...] = (),
    form: type[BaseModel] = schemas.Problem,
) -> Json:
    operation: Json = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": answer}},
    }
    by_status: dict[int, list[str]] = {}
    kinds: tuple[type[LoupeError], ...] = (*refusals, LoupeError)
    for refusal in dict.fromkeys(kinds):
        by_status.setdefault(refusal.status, []).append(refusal.code)
    media_type = PROBLEM_TYPE if form is schemas.Problem else JSON_TYPE
    for status, codes in sorted(by_status.items()):
        description = ", ".join(sorted({*codes, *_codes_with(status)}) if body else codes)
        operation["responses"][str(status)] = {
            "description": description,
            "content": {media_type: {"schema": _ref(form)}},
        }
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _codes_with(status: int) -> Iterator[str]:
    """All codes of that status that a request's body can earn."""
    for error in vars(errors).values():
        if inspect.isclass(error) and issubclass(error, (errors.RequestError, errors.Unavailable)):
            kind: type[LoupeError] = error
            if kind.status == status:
                yield kind.code


def _options() -> list[Json]:
    whole = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": DEFAULT_TOP_K}
    rows: list[tuple[str, str, Json]] = [
        ("top_k", "Most classes in the answer", whole),
        (
            "threshold",
            "Least probability of a class in the answer",
            {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
        ),
        (
            "explain",
            "Where the evidence lies: as numbers, as a picture, or both",
            {"type": "string", "enum": list(EXPLANATIONS)},
        ),
        (
            "explain_class",
            "Label or index of the class to explain; without it, the likeliest. Needs `explain`",
            TEXT,
        ),
        (
            "embedding",
            "Whether the pooled features come with the answer",
            {"type": "boolean", "default": False},
        ),
        ("model", "Name of a model that is served", TEXT),
        ("version", "Its version", TEXT),
    ]
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
        for name, text, schema in rows
    ]


def _name() -> Json:
    return {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "Name of a model that is served",
        "schema": TEXT,
    }


def _version() -> Json:
    return {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "Its version",
        "schema": TEXT,
    }


def _one_image(field: str) -> Json:
    """A body with one image: the image itself, a form, or base64 in a JSON object."""
    binary, text = (
        {"schema": {"type": "object", "properties": {field: kind}, "required": [field]}}
        for kind in (BINARY, TEXT)
    )
    return {
        **{kind: {"schema": BINARY} for kind in IMAGE_TYPES},
        MULTIPART_TYPE: binary,
        JSON_TYPE: text,
    }


def _json(model: type[BaseModel]) -> Json:
    return {JSON_TYPE: {"schema": _ref(model)}}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": COMPONENTS + model.__name__}


@cache
def _components() -> Json:
    shapes = [
        value
        for value in vars(schemas).values()
        if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
    ]
    _, document = models_json_schema(
        [(shape, "validation") for shape in shapes], ref_template=COMPONENTS + "{model}"
    )
    definitions: Json = document["$defs"]
    return definitions

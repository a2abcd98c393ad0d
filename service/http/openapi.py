"""`/openapi.json`: the document of all routes (OpenAPI 3.1).

It is generated from the error tree, the schemas, and the classes that parse requests.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from models import errors
from models.errors import LoupeError, NotReady, RequestError, Unavailable, UnknownModel
from service.http import inside_schemas, schemas
from service.http.body.multipart import MULTIPART_TYPE
from service.http.inspecting import (
    FEATURE_PARAMETERS,
    LAYER_PARAMETERS,
    PREPROCESS_PARAMETERS,
)
from service.http.options import PARAMETERS
from service.problems import PROBLEM_TYPE
from service.protocols.tensors import InferRequest

Json = dict[str, Any]
"""Any: OpenAPI's own shapes."""

COMPONENTS = "#/components/schemas/"
IMAGE_TYPES = ("image/*", "application/octet-stream")
JSON_TYPE = "application/json"
BINARY: Json = {"type": "string", "format": "binary"}
TEXT: Json = {"type": "string"}
OBJECT: Json = {"type": "object"}
PATH_PARAMETERS = {
    "name": "Name of a served model",
    "version": "Version of that model",
    "file": "Name of a file",
}
LOOKUP = (UnknownModel, NotReady)
ANSWERING = (
    errors.BadRequest,
    errors.EmptyBody,
    errors.MalformedBody,
    errors.UrlRefused,
    errors.UnknownModel,
    errors.BodyTooLarge,
    errors.UnsupportedContentType,
    errors.UndecodableImage,
    errors.QueueFull,
    errors.DeadlineExceeded,
)
"""One error for each status that a request with an image can get."""
INSPECTING = (
    errors.BadRequest,
    errors.InspectionOff,
    errors.UnknownLayer,
    errors.UnknownModel,
    errors.QueueFull,
    errors.NotReady,
    errors.DeadlineExceeded,
)
OF_REQUESTS: list[type[LoupeError]] = [
    error
    for error in vars(errors).values()
    if inspect.isclass(error) and issubclass(error, (RequestError, Unavailable))
]


def openapi_document(*, prefix: str = "") -> Json:
    """The document, of a service under the path *prefix*.

    A test compares its paths with `service.http.app.ROUTES`.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Loupe",
            "version": "1",
            "summary": "Image classification over HTTP",
            "description": (
                "Errors are `application/problem+json`; decide by `code`. The paths under `/v2` and"
                " `/predictions` follow the Open Inference Protocol and TorchServe's interface,"
                " with their forms of errors."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"}],
        "paths": _paths(),
        "components": {"schemas": _components()},
    }


def _paths() -> Json:
    images = {
        **dict.fromkeys(IMAGE_TYPES, BINARY),
        MULTIPART_TYPE: _object(image={"type": "array", "items": BINARY}),
        JSON_TYPE: _ref(schemas.Images),
    }
    either = {"oneOf": [_ref(schemas.Answer), _ref(schemas.Answers)]}
    index = {"type": "array", "items": _ref(schemas.IndexEntry)}
    probabilities = {"type": "object", "additionalProperties": {"type": "number"}}
    tensors = {"application/octet-stream": BINARY}
    answer_tensors = {JSON_TYPE: _ref(schemas.InferAnswer), **tensors}
    html = {"text/html": TEXT}
    page = {"text/javascript": TEXT, "text/css": TEXT}
    v2, model = "/v2/models/{name}", _ref(schemas.ModelDetails)
    as_torchserve = "The five likeliest classes, as TorchServe's image classifier answers"
    no_route = (errors.UnknownRoute,)
    infer = (answer_tensors, ANSWERING, {JSON_TYPE: _ref(InferRequest), **tensors})
    predict = (_json(probabilities), ANSWERING, _one_image("data"))
    rows: list[tuple[Any, ...]] = [  # Any: the arguments of `_operation`
        ("/v1/classify", "post", "classify", "The likeliest classes of one or more images",
         _json(either), (*ANSWERING, errors.OutputUnavailable), images, PARAMETERS),
        ("/v1/models", "get", "listModels", "What is served",
         _json(_ref(schemas.ModelList)), (NotReady,)),
        ("/v1/models/{name}", "get", "showModel", "The public part of a model's manifest",
         _json(model), LOOKUP),
        ("/v1/models/{name}/layers", "get", "listLayers", "The layers of a model's network",
         _json(_ref(inside_schemas.LayerList)), INSPECTING, None, _texts(LAYER_PARAMETERS)),
        ("/v1/features", "post", "showFeatures", "What a layer answers to an image",
         _json(_ref(inside_schemas.Features)), (*ANSWERING, *INSPECTING), images,
         _texts(FEATURE_PARAMETERS)),
        ("/v1/preprocess", "post", "showPreprocessing", "What the model is given for an image",
         _json(_ref(inside_schemas.Preprocessing)), (*ANSWERING, *INSPECTING), images,
         _texts(PREPROCESS_PARAMETERS)),
        ("/v2", "get", "serverMetadata", "What the server is",
         _json(_ref(schemas.ServerMetadata))),
        ("/v2/health/live", "get", "live", "It answers", _json(OBJECT)),
        ("/v2/health/ready", "get", "ready", "Models take requests", _json(OBJECT), (NotReady,)),
        *(
            row
            for path, suffix in ((v2, ""), (f"{v2}/versions/{{version}}", "Version"))
            for row in (
                (path, "get", f"modelMetadata{suffix}", "Inputs and outputs of a model",
                 _json(_ref(schemas.ModelMetadata)), LOOKUP),
                (f"{path}/ready", "get", f"modelReady{suffix}", "The model takes requests",
                 _json(OBJECT), LOOKUP),
                (f"{path}/infer", "post", f"infer{suffix}", "Outputs of the graph for a batch",
                 *infer),
            )
        ),
        ("/v2/repository/index", "post", "repositoryIndex", "The models that take requests",
         _json(index), (NotReady,)),
        ("/predictions/{name}", "post", "predictPost", as_torchserve, *predict),
        ("/predictions/{name}", "put", "predictPut", as_torchserve, *predict),
        ("/predictions/{name}/{version}", "post", "predictVersionPost", as_torchserve, *predict),
        ("/predictions/{name}/{version}", "put", "predictVersionPut", as_torchserve, *predict),
        ("/ping", "get", "ping", "Models take requests", _json(OBJECT), (NotReady,)),
        ("/classify", "post", "classifyNatively", "What bentoml.SyncHTTPClient calls",
         _json(_ref(schemas.Answer)), ANSWERING, _one_image("image")),
        ("/metrics", "get", "metrics", "Prometheus text, of all workers", {"text/plain": TEXT}),
        ("/schema.json", "get", "schema", "What `POST /classify` takes, for BentoML's client",
         _json(OBJECT)),
        ("/openapi.json", "get", "openapi", "This document", _json(OBJECT)),
        ("/docs", "get", "docs", "This document as a page", html),
        ("/docs/{file}", "get", "docsFile", "A file of that page", page, no_route),
        ("/", "get", "playground", "A page to drop a photo on", html),
        ("/page/{file}", "get", "pageFile", "A file of that page", page, no_route),
    ]  # fmt: skip
    slash = {
        "operationId": "docsSlash",
        "summary": "Redirects to /docs",
        "responses": {"307": {"description": "Temporary Redirect"}},
    }
    paths: Json = {"/docs/": {"get": slash}}
    for path, method, *row in rows:
        paths.setdefault(path, {})[method] = _operation(path, *row)
    return paths


def _operation(
    path: str,
    name: str,
    summary: str,
    answer: Json,
    refusals: tuple[type[LoupeError], ...] = (),
    body: Json | None = None,
    query: Json | None = None,
) -> Json:
    """One operation. *answer* and *body* hold a schema for each media type."""
    codes = {LoupeError.status: {LoupeError.code}}
    for kind in refusals:
        codes.setdefault(kind.status, set()).add(kind.code)
    # A request with a body can get every code of these statuses.
    for kind in OF_REQUESTS if body else ():
        codes.get(kind.status, set()).add(kind.code)
    # As `service.problems.problem` chooses them.
    form = ERROR_FORMS.get(path.split("/")[1], {PROBLEM_TYPE: _ref(schemas.Problem)})
    refused = {
        str(status): {
            "description": ", ".join(sorted(found)),
            "content": _content(form),
        }
        for status, found in sorted(codes.items())
    }
    operation: Json = {
        "operationId": name,
        "summary": summary,
        "parameters": [
            {"name": one, "in": "path", "required": True, "schema": TEXT}
            | {"description": PATH_PARAMETERS[one]}
            for one in re.findall(r"{(\w+)}", path)
        ],
        "responses": {"200": {"description": "OK", "content": _content(answer)}} | refused,
    }
    for one, schema in (query or {}).items():
        text = {"name": one, "in": "query", "description": schema["description"]}
        operation["parameters"].append(text | {"required": False, "schema": schema})
    if body:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    return operation


def _content(schemas_of_types: Json) -> Json:
    return {media_type: {"schema": schema} for media_type, schema in schemas_of_types.items()}


def _json(schema: Json) -> Json:
    return {JSON_TYPE: schema}


def _ref(shape: type[BaseModel]) -> Json:
    return {"$ref": COMPONENTS + shape.__name__}


def _texts(descriptions: Mapping[str, str]) -> Json:
    """The schemas of query parameters that are text, by name."""
    return {name: TEXT | {"description": text} for name, text in descriptions.items()}


def _object(**members: Json) -> Json:
    return {"type": "object", "properties": members, "required": list(members)}


def _one_image(field: str) -> Json:
    """A body with one image: the image itself, a form, or base64 in a JSON object."""
    return {
        **dict.fromkeys(IMAGE_TYPES, BINARY),
        MULTIPART_TYPE: _object(**{field: BINARY}),
        JSON_TYPE: _object(**{field: TEXT}),
    }


ERROR_FORMS = {
    "v2": {JSON_TYPE: _ref(schemas.InferenceProtocolError)},
    "predictions": {JSON_TYPE: _ref(schemas.TorchServeError)},
}
"""First step of a path -> media type and schema of its errors. Others have problems."""


@cache
def _components() -> Json:
    shapes = [
        shape
        for shape in [*vars(schemas).values(), *vars(inside_schemas).values(), InferRequest]
        if isinstance(shape, type) and issubclass(shape, BaseModel) and shape is not BaseModel
    ]
    _, document = models_json_schema(
        [(shape, "validation") for shape in shapes], ref_template=COMPONENTS + "{model}"
    )
    definitions: Json = document["$defs"]
    return definitions

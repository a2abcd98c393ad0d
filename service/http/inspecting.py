"""The routes that show the inside of a model: its layers, feature maps, and preprocessing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from models.errors import (
    BadRequest,
    Forbidden,
    InspectionOff,
    LoupeError,
    NotReady,
    PackageError,
)
from models.package.manifest import MODEL_FILE, ImageLimits
from service.engine.pipeline import Pipeline
from service.gate.admission import HELD_SCOPE_KEY, may_inspect
from service.http.body.images import Url, read_images, require_known_type
from service.http.body.reading import unless_client_leaves
from service.inspection.packages import precision_of
from service.observe.logs import client_of
from service.rollout.worker import Worker

log = logging.getLogger("loupe")

FEATURE_PARAMETERS = {
    "layer": "a layer's name, as /v1/models/{name}/layers lists it",
    "channels": "one channel or a range of at most 64, such as 0-63",
    "model": "name of a served model",
    "version": "version of that model",
    "precision": "fp32, fp16 or int8: one that the package has; without it, the one that answers",
}
LAYER_PARAMETERS = {
    "version": FEATURE_PARAMETERS["version"],
    "precision": FEATURE_PARAMETERS["precision"],
    "timed": "true or false: whether each layer is measured, in milliseconds of one thread",
}
PREPROCESS_PARAMETERS = {name: FEATURE_PARAMETERS[name] for name in ("model", "version")}
"""Query parameters and their descriptions, for OpenAPI too."""


async def list_layers(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v1/models/{name}/layers`: what the network is."""
    _require_open(request, worker)
    deadline, asked = _deadline(worker), request.query_params
    pipeline = _pipeline(request, worker, request.path_params["name"])
    if asked.get("timed", "false") not in ("true", "false"):
        raise BadRequest(f"timed is {asked['timed'][:40]!r}; expected true or false")
    question = _question("layers", worker, pipeline, asked) | {
        "timed": asked.get("timed") == "true"
    }
    return await _ask(request, worker, question, deadline=deadline)


async def show_features(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v1/features`: what the channels of a layer answer to an image."""
    _require_open(request, worker)
    asked = request.query_params
    pipeline = _pipeline(request, worker, asked.get("model"))
    if not asked.get("layer"):
        raise BadRequest(f"layer is missing; expected {FEATURE_PARAMETERS['layer']}, as ?layer=...")
    question = _question("features", worker, pipeline, asked) | {
        "layer": asked["layer"],
        "channels": asked.get("channels", "0-63"),
    }
    return await _ask_about_image(request, worker, question)


async def show_preprocessing(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v1/preprocess`: what the model is given for an image, and how that came about."""
    _require_open(request, worker)
    asked = request.query_params
    pipeline = _pipeline(request, worker, asked.get("model"))
    question = _question("preprocess", worker, pipeline, {})
    return await _ask_about_image(request, worker, question)


async def _ask_about_image(
    request: Request, worker: Worker, question: Mapping[str, object]
) -> Response:
    deadline, settings = _deadline(worker), worker.settings
    require_known_type(request)
    worker.inspector.admit()
    sources = await read_images(request, settings, deadline=deadline)
    if len(sources) != 1:
        raise BadRequest(f"the request has {len(sources)} images; this route takes one")
    (source,) = sources
    if isinstance(source, LoupeError):
        raise source
    if isinstance(source, Url):
        hold = request.scope[HELD_SCOPE_KEY].hold
        source = await worker.fetcher.fetch(source.url, deadline=deadline, hold=hold)
    return await _ask(request, worker, question, source, deadline=deadline)


async def _ask(
    request: Request,
    worker: Worker,
    question: Mapping[str, object],
    image: bytes = b"",
    *,
    deadline: float,
) -> Response:
    work = worker.inspector.ask(question, image, deadline=deadline)
    try:
        document = await unless_client_leaves(request.receive, work)
    except PackageError as error:
        log.warning("request of %s: %s", question["what"], error)
        raise NotReady(
            "the package of this version left the store, or was changed there, since it was opened;"
            " it still classifies, but its inside cannot be shown"
        ) from error
    return Response(document, media_type="application/json")


def _require_open(request: Request, worker: Worker) -> None:
    if may_inspect(request.scope, worker.settings):
        return
    if worker.settings.inspection == "admin":
        # The gate knows these paths too. This holds if it ever should not.
        raise Forbidden("this route needs an API key with the scope 'admin'")
    raise InspectionOff(
        "this service does not show the inside of its models; whoever runs it can set"
        " LOUPE_INSPECT=open or LOUPE_INSPECT=admin"
    )


def _pipeline(request: Request, worker: Worker, name: str | None) -> Pipeline:
    version = request.query_params.get("version")
    return worker.pipeline(name, version, client=client_of(request.scope))


def _question(
    what: str, worker: Worker, pipeline: Pipeline, asked: Mapping[str, str]
) -> dict[str, object]:
    """What the inspecting process must know. Raises `BadRequest` for an unknown precision."""
    classifier = pipeline.classifier
    manifest, model = classifier.manifest, classifier.model
    return {
        "what": what,
        "model": {"name": classifier.name, "version": classifier.version},
        "package": str(model.path.resolve()),
        "sha256": manifest.files[MODEL_FILE].sha256,
        "precision": precision_of(asked.get("precision", ""), manifest, answering=model.precision),
        "limits": {name: getattr(classifier.spec, name) for name in ImageLimits._fields},
        "served": worker.open_hashes(),
    }


def _deadline(worker: Worker) -> float:
    return time.monotonic() + worker.settings.deadline_ms / 1000.0

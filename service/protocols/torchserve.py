"""`/predictions` and `/ping`: TorchServe's inference interface."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.http.body.images import image_of, read_fields, require_known_type
from service.http.body.reading import unless_client_leaves
from service.observe.logs import client_of
from service.observe.metrics import METRICS
from service.rollout.worker import Worker

TOP_K = 5
"""As TorchServe's image classifier by default."""


async def predict(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /predictions/{name}[/{version}]`: `{label: probability}` of the five likeliest.

    The image is the body, or in a form or JSON.
    """
    arrived = time.monotonic()
    settings = worker.settings
    client = client_of(request.scope)
    pipeline = worker.pipeline(
        request.path_params["name"], request.path_params.get("version"), client=client
    )
    deadline = arrived + settings.deadline_ms / 1000.0
    require_known_type(request)
    pipeline.admit(deadline=deadline, client=client)
    encoded = image_of(await read_fields(request, settings, deadline=deadline))
    METRICS.stage("read", time.monotonic() - arrived)
    result = await unless_client_leaves(
        request.receive, pipeline.classify(encoded, top_k=TOP_K, deadline=deadline, client=client)
    )
    return JSONResponse({one.label: one.probability for one in result.classification.predictions})


async def ping(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /ping`: whether models take requests. Raises `NotReady`."""
    worker.served()
    return JSONResponse({"status": "Healthy"})

"""`POST /v1/classify`."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from service.http.answering import answer
from service.http.body.images import read_images, require_known_type
from service.http.options import read_options
from service.observe.logs import client_of
from service.rollout.worker import Worker


async def classify(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v1/classify`: one image as the body, or one or more in a form or a JSON document."""
    arrived = time.monotonic()
    parameters, settings, client = request.query_params, worker.settings, client_of(request.scope)
    deadline = arrived + settings.deadline_ms / 1000.0
    pipeline = worker.pipeline(parameters.get("model"), parameters.get("version"), client=client)
    options = read_options(parameters, pipeline.classifier)
    require_known_type(request)
    pipeline.admit(deadline=deadline, client=client)
    sources = await read_images(request, settings, deadline=deadline)
    return await answer(
        request,
        worker,
        pipeline,
        sources,
        options,
        request_id=request_id,
        arrived=arrived,
        deadline=deadline,
    )

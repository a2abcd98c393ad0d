"""`POST /v1/classify`."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.http.answering import answer_each, answer_one, fetching_for, model_body, timing_ms
from service.http.body.images import read_images, require_known_type
from service.http.body.reading import client_key, unless_client_leaves
from service.http.options import read_options
from service.observe.metrics import METRICS
from service.rollout.worker import Worker


async def classify(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v1/classify`: the image itself is the body, or a form or a JSON document holds one or
    more.
    """
    arrived = time.monotonic()
    parameters, settings = request.query_params, worker.settings
    client = client_key(request)
    pipeline = worker.pipeline(parameters.get("model"), parameters.get("version"), client=client)
    deadline = arrived + settings.deadline_ms / 1000.0
    options = read_options(parameters, pipeline.classifier)
    require_known_type(request)
    pipeline.admit(deadline=deadline, client=client)
    sources = await read_images(request, settings, deadline=deadline)
    read_s = time.monotonic() - arrived
    METRICS.stage("read", read_s)
    body: dict[str, object] = {"model": model_body(pipeline.classifier)}
    fetch = fetching_for(request, worker.fetcher, deadline=deadline)
    if len(sources) == 1:
        work = answer_one(
            pipeline, sources[0], options, fetch=fetch, deadline=deadline, client=client
        )
        answer, timing = await unless_client_leaves(request.receive, work)
        answered = time.monotonic()
        body |= answer | {
            "request_id": request_id,
            "timing_ms": timing_ms(timing, read_s=read_s, total_s=answered - arrived),
        }
    else:
        places = settings.places_of_request
        each = answer_each(
            pipeline,
            sources,
            options,
            fetch=fetch,
            places=places,
            deadline=deadline,
            client=client,
            request_id=request_id,
        )
        results = await unless_client_leaves(request.receive, each)
        answered = time.monotonic()
        total_ms = {
            "read": round(read_s * 1000.0, 3),
            "total": round((answered - arrived) * 1000.0, 3),
        }
        body |= {"results": results, "request_id": request_id, "timing_ms": total_ms}
    response = JSONResponse(body)
    METRICS.stage("respond", time.monotonic() - answered)
    return response

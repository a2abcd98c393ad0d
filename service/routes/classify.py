"""`POST /v1/classify`."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.classifier import Classification
from service.metrics import METRICS
from service.pipeline import Timing
from service.routes.reading import client_key, read_body, require_image_type, whole_number
from service.worker import Worker

MAX_TOP_K = 1000


async def classify(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v1/classify`: the image itself is the body."""
    arrived = time.monotonic()
    pipeline = worker.pipeline(request.query_params.get("model"), request.query_params.get("version"), client=client_key(request))
    deadline = arrived + worker.settings.deadline_ms / 1000.0
    top_k = whole_number(request, "top_k", default=min(5, len(pipeline.classifier.manifest.labels)), low=1, high=MAX_TOP_K)
    require_image_type(request)
    pipeline.admit()
    encoded = await read_body(request, limit=worker.settings.max_body_bytes, deadline=deadline)
    read = time.monotonic()
    METRICS.stage("read", read - arrived)
    result = await pipeline.classify(encoded, top_k=top_k, deadline=deadline)
    answered = time.monotonic()
    body = {
        "model": {"name": pipeline.classifier.name, "version": pipeline.classifier.version},
        **_classification(result.classification),
        "request_id": request_id,
        "timing_ms": _timing_ms(result.timing, read_s=read - arrived, total_s=answered - arrived),
    }
    response = JSONResponse(body)
    METRICS.stage("respond", time.monotonic() - answered)
    return response


def _classification(classification: Classification) -> dict[str, object]:
    predictions = [{"label": p.label, "index": p.index, "probability": p.probability} for p in classification.predictions]
    return {"predictions": predictions, "abstained": classification.abstained}


def _timing_ms(timing: Timing, *, read_s: float, total_s: float) -> dict[str, float]:
    stages = {"read": read_s, "decode": timing.decode_s, "queue": timing.queue_s, "inference": timing.inference_s, "total": total_s}
    return {name: round(seconds * 1000.0, 3) for name, seconds in stages.items()}

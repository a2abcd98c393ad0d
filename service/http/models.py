"""`GET /v1/models`: what is served."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.rollout.worker import Worker


async def list_models(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v1/models`: names and versions."""
    return JSONResponse(
        {"models": [{"name": one.name, "version": one.version} for one in worker.served()]}
    )


async def show_model(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v1/models/{name}`: the public part of the manifest."""
    classifier = worker.pipeline(request.path_params["name"]).classifier
    return JSONResponse(
        {"name": classifier.name, "version": classifier.version, **classifier.manifest.public()}
    )

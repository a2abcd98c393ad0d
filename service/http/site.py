"""The routes besides classification and pages: models, metrics, and OpenAPI."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.gate.admission import may_inspect
from service.http.addresses import PREFIX_HEADER, public_prefix
from service.http.openapi import openapi_document
from service.observe.metrics import CONTENT_TYPE, SCRAPER
from service.rollout.worker import Worker


async def list_models(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v1/models`: names, versions and aliases."""
    return JSONResponse({"models": worker.catalogue()})


async def show_model(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v1/models/{name}`: the public part of the manifest."""
    classifier = worker.pipeline(
        request.path_params["name"], request.query_params.get("version")
    ).classifier
    return JSONResponse(
        {
            "name": classifier.name,
            "version": classifier.version,
            "inspect": may_inspect(request.scope, worker.settings),
            **classifier.manifest.public(),
        }
    )


async def show_metrics(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /metrics`: Prometheus text of all workers."""
    return Response(await SCRAPER.text(), headers={"Content-Type": CONTENT_TYPE})


async def show_openapi(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /openapi.json`: the document of all routes, with the prefix that the client uses."""
    prefix = public_prefix(request, root_path=worker.settings.root_path)
    # No cache may give one client's prefix to another.
    return JSONResponse(
        openapi_document(prefix=prefix),
        headers={"Vary": PREFIX_HEADER, "Cache-Control": "no-store"},
    )

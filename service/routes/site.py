"""Pages and metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from service.metrics import CONTENT_TYPE, exposition
from service.playground import PAGE
from service.worker import Worker


async def show_metrics(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /metrics`: Prometheus text of all workers."""
    return Response(exposition(), headers={"Content-Type": CONTENT_TYPE})


async def show_playground(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /`: a page to drop a photo on."""
    return FileResponse(PAGE, media_type="text/html")

"""The routes besides classification: models, pages, metrics, and OpenAPI."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from models.errors import UnknownRoute
from service.gate.admission import may_inspect
from service.http.addresses import PREFIX_HEADER, public_prefix
from service.http.openapi import openapi_document
from service.observe.metrics import CONTENT_TYPE, SCRAPER
from service.rollout.worker import Worker

PLAYGROUND = Path(__file__).with_name("playground")
DOCS_START = "docs.js"
DOCS_FILES = {
    DOCS_START: "text/javascript",
    # Of Swagger UI, which BentoML ships.
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}
PAGE_HEADERS = {
    # The page loads nothing from other hosts and cannot be framed. Swagger UI sets styles from its
    # script and draws icons from data URLs.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline';"
        " script-src 'self' {inline}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


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


async def show_playground(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /`: a page to drop a photo on."""
    return _page("index.html", inline="'unsafe-inline'")


async def show_docs(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /docs`: Swagger UI."""
    return _page("docs.html", inline="")


async def show_docs_slash(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /docs/`: redirects to `/docs`, to which the page's addresses are relative."""
    return RedirectResponse("../docs")


async def show_docs_file(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /docs/{file}`: the files of Swagger UI."""
    # Here, because it imports BentoML.
    from service.server.patches import swagger_folder

    name = request.path_params["file"]
    if name not in DOCS_FILES:
        raise UnknownRoute(f"no file {name[:80]!r} in /docs; it has {', '.join(DOCS_FILES)}")
    folder = PLAYGROUND if name == DOCS_START else swagger_folder()
    headers = {"Cache-Control": "max-age=86400"}
    return FileResponse(folder / name, media_type=DOCS_FILES[name], headers=headers)


async def show_openapi(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /openapi.json`: the document of all routes, with the prefix that the client uses."""
    prefix = public_prefix(request, root_path=worker.settings.root_path)
    # No cache may give one client's prefix to another.
    return JSONResponse(
        openapi_document(prefix=prefix),
        headers={"Vary": PREFIX_HEADER, "Cache-Control": "no-store"},
    )


def _page(name: str, *, inline: str) -> Response:
    return FileResponse(
        PLAYGROUND / name,
        media_type="text/html",
        headers={name: value.format(inline=inline) for name, value in PAGE_HEADERS.items()},
    )

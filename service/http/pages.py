"""The pages for people: the playground at `/`, and Swagger UI at `/docs`."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from functools import cache, lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from models.errors import UnknownRoute
from service.http.addresses import PREFIX_HEADER, public_prefix
from service.rollout.worker import Worker

PLAYGROUND = Path(__file__).with_name("playground")
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
DOCS_START = "docs.js"
DOCS_FILES = {
    DOCS_START: "text/javascript",
    # Of Swagger UI, which BentoML ships.
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
)
"""The pages load nothing from other hosts and cannot be framed."""
PAGE_POLICY = (
    f"{POLICY}style-src 'self'; script-src 'self' {{inline}};"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No inline style, and no text ever becomes markup. The one inline script goes by its hash."""
DOCS_POLICY = f"{POLICY}script-src 'self'; style-src 'self' 'unsafe-inline'"
"""Swagger UI sets styles from its script."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": f"Accept-Encoding, {PREFIX_HEADER}",
}


async def show_playground(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /`: a page to drop a photo on."""
    content = _read("index.html")
    prefix = public_prefix(request, root_path=worker.settings.root_path)
    if prefix:
        # Where the page's address has no slash at its end, a relative address leads elsewhere.
        content = content.replace(b'"page/', f'"{prefix}/page/'.encode())
    policy = PAGE_POLICY.format(inline=_inline_hash())
    return _answer(request, content, kind=KINDS[".html"], policy=policy)


async def show_page_file(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /page/{file}`: the scripts and styles of the playground."""
    names = sorted(path.name for path in PLAYGROUND.iterdir() if path.suffix != ".html")
    name = request.path_params["file"]
    if name not in names:
        raise UnknownRoute(f"no file {name[:80]!r} in /page; it has {', '.join(names)}")
    return _answer(request, _read(name), kind=KINDS[Path(name).suffix])


async def show_docs(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /docs`: Swagger UI."""
    return _answer(request, _read("docs.html"), kind=KINDS[".html"], policy=DOCS_POLICY)


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
    if name == DOCS_START:
        return _answer(request, _read(name), kind=DOCS_FILES[name])
    headers = {"Cache-Control": "max-age=86400"}
    return FileResponse(swagger_folder() / name, media_type=DOCS_FILES[name], headers=headers)


def _answer(request: Request, content: bytes, *, kind: str, policy: str = "") -> Response:
    """*content*, or 304 if the browser has it.

    Browsers ask each time: a page must not mix the scripts of two releases.
    """
    tag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = HEADERS | {"ETag": tag}
    if policy:
        headers["Content-Security-Policy"] = policy
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = _compressed(content), headers | {"Content-Encoding": "gzip"}
    return Response(content, media_type=kind, headers=headers)


@cache
def _read(name: str) -> bytes:
    return (PLAYGROUND / name).read_bytes()


@lru_cache(maxsize=64)
def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@cache
def _inline_hash() -> str:
    """The policy's word for the page's one inline script.

    It adds the slash to the page's address, without which no other script would be found.
    """
    found = re.findall(rb"<script>(.*?)</script>", _read("index.html"), re.DOTALL)
    assert len(found) == 1, "index.html has one inline script"
    digest = base64.b64encode(hashlib.sha256(found[0]).digest()).decode("ascii")
    return f"'sha256-{digest}'"

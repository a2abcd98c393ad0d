"""Paths behind a proxy that serves Loupe under a prefix, such as `https://example.com/loupe/`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope

from service.settings import PATH_PREFIX

PREFIX_HEADER = "x-forwarded-prefix"
KEPT = "/docs/"
"""Is redirected instead: the page's relative addresses count from `/docs`."""


def make_local(scope: Scope, *, root_path: str) -> None:
    """Take *root_path* from the beginning of the request's path, where a proxy left it there, and a
    slash from its end.
    """
    path: str = scope["path"]
    if root_path and (path == root_path or path.startswith(f"{root_path}/")):
        path = path[len(root_path) :]
    if path.endswith("/") and path != KEPT:
        path = path.rstrip("/")
    scope["path"] = path or "/"


def public_prefix(request: Request, *, root_path: str) -> str:
    """The path under which clients see the service: *root_path*, otherwise what the proxy says;
    empty for none.

    Anybody can send the header. Whatever does not look like a plain path counts as none.
    """
    given = request.headers.get(PREFIX_HEADER, "").strip().removesuffix("/")
    return root_path or (given if PATH_PREFIX.fullmatch(given) else "")

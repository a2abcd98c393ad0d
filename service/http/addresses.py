"""Paths behind a proxy that serves Loupe under a prefix, such as `https://example.com/loupe/`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope

from service.settings import PATH_PREFIX

PREFIX_HEADER = "x-forwarded-prefix"
KEPT = "/docs/"
"""Keeps its slash, because it redirects: the page's addresses are relative to `/docs`."""


def make_local(scope: Scope, *, root_path: str) -> None:
    """Remove *root_path* from the beginning of the request's path, and a slash from its end."""
    path: str = scope["path"]
    if root_path and (path == root_path or path.startswith(f"{root_path}/")):
        path = path[len(root_path) :]
    if path.endswith("/") and path != KEPT:
        path = path.rstrip("/")
    scope["path"] = path or "/"


def public_prefix(request: Request, *, root_path: str) -> str:
    """The path under which clients see the service: *root_path*, or else what the proxy says.

    Empty if there is none. Anybody can send the header, so only a plain path counts.
    """
    given = request.headers.get(PREFIX_HEADER, "").strip().removesuffix("/")
    return root_path or (given if PATH_PREFIX.fullmatch(given) else "")

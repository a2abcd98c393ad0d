"""The routing table: which endpoint answers a request."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from models.errors import MethodNotAllowed, UnknownRoute
from service.rollout.worker import Worker

PROBES = ("/livez", "/readyz", "/healthz")
"""BentoML answers GET and HEAD on them. Every other method comes here."""

Endpoint = Callable[[Request, Worker, str], Awaitable[Response]]
"""Takes the request, the worker and the request's id. Its errors become problems."""


class RoutingTable:
    """The routes of an application. *routes* holds path template, methods and endpoint of each."""

    def __init__(self, routes: Iterable[tuple[str, str, Endpoint]]) -> None:
        self._endpoints: dict[str, dict[str, Endpoint | None]] = {
            template: {"GET": None, "HEAD": None} for template in PROBES
        }
        for template, methods, endpoint in routes:
            names = [*methods.split(), *(["HEAD"] if "GET" in methods.split() else [])]
            self._endpoints.setdefault(template, {}).update(dict.fromkeys(names, endpoint))
        self._patterns: dict[str, re.Pattern[str]] = {
            template: compile_path(template)[0] for template in self._endpoints
        }

    def find(self, method: str, path: str) -> tuple[str, Endpoint, dict[str, str]]:
        """Template, endpoint and path parameters for *method* on *path*.

        Raises `UnknownRoute` if no template matches *path*, `MethodNotAllowed` if the path does not
        have *method*.
        """
        template, parameters = path, {}
        if path not in self._endpoints:
            matches = ((one, pattern.match(path)) for one, pattern in self._patterns.items())
            template, found = next((one for one in matches if one[1]), (path, None))
            parameters = found.groupdict() if found else {}
        if template not in self._endpoints:
            raise UnknownRoute(
                f"no route {path[:200]}; POST an image to /v1/classify; /docs lists every route"
            )
        endpoint = self._endpoints[template].get(method)
        if endpoint is None:
            allowed = sorted(self._endpoints[template])
            raise MethodNotAllowed(
                f"{method[:20]} is not allowed for {path[:200]}; allowed: {', '.join(allowed)}",
                allowed=allowed,
            )
        return template, endpoint, parameters

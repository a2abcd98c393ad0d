"""Which endpoint answers a request: one table of path templates."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from models.errors import MethodNotAllowed, UnknownRoute
from service.rollout.worker import Worker

PROBES = ("/livez", "/readyz", "/healthz")
"""BentoML answers GET on them; every other method comes here."""

Endpoint = Callable[[Request, Worker, str], Awaitable[Response]]
"""Takes the request, the worker and the request's id. What it raises becomes a problem."""


@dataclass(frozen=True)
class Path:
    """A path template, and the endpoint of each of its methods."""

    template: str
    pattern: re.Pattern[str]
    endpoints: dict[str, Endpoint | None] = field(default_factory=dict)


class Table:
    """The routes of an application. *routes* holds template, methods and endpoint of each."""

    def __init__(self, routes: Iterable[tuple[str, str, Endpoint]]) -> None:
        self.paths = {
            template: Path(template, compile_path(template)[0], {"GET": None, "HEAD": None})
            for template in PROBES
        }
        for template, methods, endpoint in routes:
            path = self.paths.setdefault(template, Path(template, compile_path(template)[0]))
            for method in methods.split():
                path.endpoints[method] = endpoint
                if method == "GET":
                    path.endpoints["HEAD"] = endpoint

    def find(self, method: str, path: str) -> tuple[str, Endpoint, dict[str, str]]:
        """Template, endpoint and path parameters for *method* on *path*.

        Raises `UnknownRoute` for a path that no template matches, `MethodNotAllowed` for a method
        that its path does not have.
        """
        known, parameters = self.paths.get(path), {}
        if known is None:
            known, parameters = next(
                (
                    (one, match.groupdict())
                    for one in self.paths.values()
                    if (match := one.pattern.match(path))
                ),
                (None, {}),
            )
        if known is None:
            raise UnknownRoute(
                f"no route {path[:200]}; POST an image to /v1/classify; /docs lists every route"
            )
        endpoint = known.endpoints.get(method)
        if endpoint is None:
            allowed = sorted(known.endpoints)
            raise MethodNotAllowed(
                f"{method[:20]} is not allowed for {path[:200]}; allowed: {', '.join(allowed)}",
                allowed=allowed,
            )
        return known.template, endpoint, parameters

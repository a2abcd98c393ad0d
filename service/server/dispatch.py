"""The first to see a request: it hands probes to BentoML and everything else to our application.

BentoML's own middleware makes a task, two timers and a context for each request, for what our
application does itself. Source: a profile of the event loop, where that took a tenth of the time.
"""

from __future__ import annotations

from typing import Any

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.addresses import make_local
from service.http.routing import PROBES
from service.settings import service_settings


class Front:
    """ASGI application: *ours* for requests, *bentoml_app* for its probes and for the lifespan, in
    which it starts ours.

    A proxy may leave *root_path* at the beginning of the paths that it passes on.
    """

    def __init__(self, *, ours: ASGIApp, bentoml_app: ASGIApp, root_path: str) -> None:
        self._ours = ours
        self._bentoml = bentoml_app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            # Before anything is decided by the path.
            make_local(scope, root_path=self._root_path)
        if scope["type"] != "http" or (
            scope["path"] in PROBES and scope["method"] in ("GET", "HEAD")
        ):
            await self._bentoml(scope, receive, send)
        else:
            await self._ours(scope, receive, send)


class FrontedService(bentoml.Service):  # type: ignore[misc]  # BentoML's types are not read
    """A BentoML service with one application mounted at its root, behind `Front`."""

    def to_asgi(self, *args: Any, **options: Any) -> ASGIApp:
        """What uvicorn runs."""
        ((ours, _, _),) = self.mount_apps
        return Front(
            ours=ours,
            bentoml_app=super().to_asgi(*args, **options),
            root_path=service_settings().root_path,
        )

"""The first step of every request: probes, our application, or BentoML for the lifespan.

BentoML's own middleware makes a task, two timers and a context for each request, for work that our
application does itself. In a profile of the event loop that took a tenth of the time.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.addresses import make_local
from service.http.routing import PROBES


class Dispatch:
    """ASGI application: *application* for requests, *probes*, *bentoml_app* for the lifespan.

    A proxy may leave *root_path* at the beginning of the paths that it passes on.
    """

    def __init__(
        self, *, application: ASGIApp, probes: ASGIApp, bentoml_app: ASGIApp, root_path: str
    ) -> None:
        self._application = application
        self._probes = probes
        self._bentoml = bentoml_app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        target = self._bentoml
        if scope["type"] == "http":
            # First, because everything else depends on the path.
            make_local(scope, root_path=self._root_path)
            is_probe = scope["path"] in PROBES and scope["method"] in ("GET", "HEAD")
            target = self._probes if is_probe else self._application
        await target(scope, receive, send)

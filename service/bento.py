"""The BentoML service: `bentoml serve service.bento:Loupe`. Wiring only.

One service without dependencies, and a mounted application: a `bentoml.depends` hop and `@bentoml.api` each cost more than the model
does. BentoML brings the process model, the probes' routes and packaging; its own metrics and access log are off, because they cost
more than a request and label by the raw path.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import bentoml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from models.errors import NotReady
from service.routes import create_app
from service.routes.native import NativeSchema
from service.settings import service_settings
from service.worker import Worker


def _log_to_stderr() -> None:
    """A handler of our own: BentoML configures the root logger to drop what is below a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("loupe")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


_log_to_stderr()
SETTINGS = service_settings()
WORKER = Worker(SETTINGS)
BENTO_TIMEOUT_S = SETTINGS.deadline_ms / 1000.0 + 10.0
"""BentoML cannot be told to have none. Longer than our own deadline, because what BentoML answers is no problem of ours."""


@asynccontextmanager
async def _lifespan(_: Starlette) -> AsyncIterator[None]:
    async with WORKER.running():
        yield


@bentoml.asgi_app(create_app(WORKER, lifespan=_lifespan), path="/")
@bentoml.service(
    name="loupe",
    workers=SETTINGS.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
    traffic={"timeout": BENTO_TIMEOUT_S},
)
class Loupe:
    """Image classification over HTTP."""

    async def __is_ready__(self) -> bool:
        """True once the model is verified and warm. Otherwise the probe's answer is 503 and says why."""
        try:
            WORKER.pipeline()
        except NotReady as error:
            raise HTTPException(error.status, detail=str(error)) from None
        return True


# BentoML's decorator made a Service of the class, which mypy does not see.
Loupe.add_asgi_middleware(NativeSchema)  # type: ignore[attr-defined]

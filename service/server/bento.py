"""The BentoML service: `bentoml serve service.server.bento:Loupe`. Wiring only.

One service without dependencies, with our application mounted: a `bentoml.depends` hop and
`@bentoml.api` each cost more than the model does. BentoML brings the process model, the probes and
packaging. Requests do not go through its middleware (`service.server.dispatch`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import bentoml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from models.errors import NotReady
from service.engine.threads import hand_over_quickly
from service.http.app import create_app
from service.observe.logs import start_log
from service.rollout.worker import Worker
from service.server.connection import bound_connections
from service.server.dispatch import FrontedService
from service.server.shutdown import Ending, end_with_parent, settle
from service.settings import service_settings

SETTINGS = service_settings()
start_log(style=SETTINGS.log_format)
bound_connections()
WORKER = Worker(SETTINGS)
ENDING = Ending()


@asynccontextmanager
async def _lifespan(_: Starlette) -> AsyncIterator[None]:
    end_with_parent()
    hand_over_quickly()
    async with WORKER.running(), APP.watching_keys():
        settle()
        with ENDING.announced(SETTINGS.drain_delay_s):
            yield


APP = create_app(WORKER, lifespan=_lifespan, ending=lambda: ENDING.begun, tracing=WORKER.tracing)


@bentoml.asgi_app(APP, path="/")
@bentoml.service(
    name="loupe",
    workers=SETTINGS.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
    # So that it names the right address; the files themselves come by its command line.
    ssl={"enabled": bool(SETTINGS.tls_certificate)},
    service_class=FrontedService,
)
class Loupe:
    """Image classification over HTTP."""

    async def __is_alive__(self) -> bool:
        """False for what only a restart mends."""
        return WORKER.is_alive()

    async def __is_ready__(self) -> bool:
        """True once the model is verified and warm.

        Otherwise the probe's answer is 503 and says why.
        """
        if ENDING.begun:
            raise HTTPException(
                NotReady.status,
                detail="the service is about to end; send requests to another instance",
            )
        try:
            WORKER.served()
        except NotReady as error:
            raise HTTPException(error.status, detail=str(error)) from None
        return True

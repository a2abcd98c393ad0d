"""The BentoML service: one worker process, made of the parts of the other rooms.

Our application is mounted in one service without dependencies, because a `bentoml.depends` hop and
`@bentoml.api` each cost more than the model does. BentoML brings the process model, the probes and
packaging. Requests do not pass its middleware (`service.server.dispatch`).

`loupe serve` starts it. `bentoml serve service.server.bento:Loupe` works too, with less; the log
says what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import bentoml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from models.errors import NotReady
from service.engine.threads import hand_over_quickly
from service.http.app import Application
from service.observe.logs import start_log
from service.rollout.worker import Worker
from service.server.connection import bound_connections
from service.server.patches import BehindDispatch
from service.server.shutdown import Ending, end_with_parent, settle
from service.settings import has_private_home, service_settings

log = logging.getLogger("loupe")

MISSING = (
    "started without `loupe serve`: dead workers are replaced after up to ten seconds, the"
    " supervisor takes commands from every local user, connections are reset while it ends, and"
    " LOUPE_HOST, LOUPE_PORT, LOUPE_TLS_*, LOUPE_KEEP_ALIVE_S and LOUPE_DRAIN_TIMEOUT_S count for"
    " nothing; start it with `loupe serve`"
)
SETTINGS = service_settings()
start_log(style=SETTINGS.log_format)
if not has_private_home():
    log.warning(MISSING)
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


APP = Application(WORKER, lifespan=_lifespan, ending=lambda: ENDING.begun, tracing=WORKER.tracing)


class LoupeService(BehindDispatch, bentoml.Service):  # type: ignore[misc]  # BentoML has no types
    """BentoML's service, behind `service.server.dispatch`."""


@bentoml.asgi_app(APP, path="/")
@bentoml.service(
    name="loupe",
    workers=SETTINGS.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
    # For the address that BentoML logs. The files themselves come by its command line.
    ssl={"enabled": bool(SETTINGS.tls_certificate)},
    service_class=LoupeService,
)
class Loupe:
    """Image classification over HTTP."""

    async def __is_alive__(self) -> bool:
        """False if only a restart of this process helps."""
        return WORKER.is_alive()

    async def __is_ready__(self) -> bool:
        """True once the model is verified and warm. Otherwise the probe answers 503 and why."""
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

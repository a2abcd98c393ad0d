"""The BentoML service: one worker process, made of the parts of the other rooms.

Our application is mounted in one service without dependencies, because a `bentoml.depends` hop and
`@bentoml.api` each cost more than the model does. BentoML brings the worker process and packaging.
Requests do not pass its middleware (`service.server.dispatch`).

`loupe serve` starts it. `bentoml serve service.server.bento:Loupe` works too, with less; the log
says what is missing. So does a bento of `bentoml build`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import bentoml
from starlette.applications import Starlette

from models.store.interchange import BENTO_PRODUCER, BENTO_STORE
from service.engine.threads import hand_over_quickly
from service.http.app import Application
from service.observe.certificate import certificate_end
from service.observe.logs import start_log
from service.observe.metrics import CERTIFICATE_END, METRICS
from service.rollout.worker import Worker
from service.server.connection import bound_connections
from service.server.heartbeat import beat, place
from service.server.patches import BehindDispatch
from service.server.probes import Probes
from service.server.shutdown import Ending, settle
from service.settings import apply_options, service_settings

log = logging.getLogger("loupe")

MISSING = (
    "started without `loupe serve`: a silent worker is not noticed, a dead one is replaced after up"
    " to ten seconds, the supervisor takes commands from every local user, connections are reset"
    " while it ends, and LOUPE_HOST, LOUPE_PORT, LOUPE_TLS_*, LOUPE_KEEP_ALIVE_S and"
    " LOUPE_DRAIN_TIMEOUT_S count for nothing; start it with `loupe serve`"
)


def use_models_of_bentoml() -> None:
    """Serve the newest model that `loupe models to-bento` put into BentoML's store.

    Unless a store of our own is there. `LOUPE_MODEL` chooses among names.
    """
    settings = service_settings()
    if "store" in settings.model_fields_set or settings.store.is_dir():
        return
    name = settings.model.partition("@")[0].partition(":")[0]
    found = [
        one
        for one in bentoml.models.list(name or None)
        if one.info.labels.get("producer") == BENTO_PRODUCER
    ]
    if found:
        newest = max(found, key=lambda one: one.creation_time)
        apply_options({"store": newest.path_of(BENTO_STORE)})


PLACE = place()
if PLACE is None:
    use_models_of_bentoml()
SETTINGS = service_settings()
if PLACE is not None:
    start_log(style=SETTINGS.log_format, stream=PLACE.log)
    METRICS.supervision = PLACE.board.metrics
elif bentoml.server_context.worker_index is not None:
    # Not while `bentoml build` looks at this module.
    start_log(style=SETTINGS.log_format)
if SETTINGS.tls_certificate:
    CERTIFICATE_END.set(certificate_end(Path(SETTINGS.tls_certificate).read_text("ascii")) or 0.0)
bound_connections()
WORKER = Worker(SETTINGS)
ENDING = Ending()


@asynccontextmanager
async def _lifespan(_: Starlette) -> AsyncIterator[None]:
    hand_over_quickly()
    with beating(), ENDING.announced(SETTINGS.drain_delay_s):
        async with WORKER.running(), APP.watching_keys():
            settle()
            yield


@contextmanager
def beating() -> Iterator[None]:
    """Inside, the supervisor sees that this worker lives."""
    if PLACE is None:
        log.warning(MISSING)
        yield
        return
    drain_s = SETTINGS.drain_delay_s + SETTINGS.drain_timeout_s
    signs = beat(PLACE, worker=WORKER, ending=ENDING, drain_s=drain_s)
    beating = asyncio.create_task(signs, name="heartbeat")
    try:
        yield
    finally:
        beating.cancel()


APP = Application(WORKER, lifespan=_lifespan, ending=lambda: ENDING.begun, tracing=WORKER.tracing)


class LoupeService(BehindDispatch, bentoml.Service):  # type: ignore[misc]  # BentoML has no types
    """BentoML's service, behind `service.server.dispatch`."""

    probes = staticmethod(Probes(WORKER, ENDING, None if PLACE is None else PLACE.board))


@bentoml.asgi_app(APP, path="/")
@bentoml.service(
    name="loupe",
    workers=SETTINGS.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
    service_class=LoupeService,
)
class Loupe:
    """Image classification over HTTP."""

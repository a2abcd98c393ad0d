"""One worker process: opens the model beside the event loop, says when it is ready, and drains at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from models.errors import ConfigError, LoupeError, NotReady, UnknownModel
from models.machine import threads_per_worker
from models.store import Store
from service.classifier import Classifier
from service.metrics import METRICS
from service.pipeline import Pipeline
from service.settings import ServiceSettings

log = logging.getLogger("loupe")

OPENING_PATIENCE_S = 5.0
"""A worker takes no connections until its model is open, or this has passed: with several workers, those that are ready answer
meanwhile. After it the probes are answered, for a model that takes long."""


class Worker:
    """Holds the pipeline once its model is verified and warm. Liveness never asks it anything."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self._pipeline: Pipeline | None = None
        self._failure: Exception | None = None
        self._draining = False

    def pipeline(self, model: str | None = None, version: str | None = None, *, client: str = "") -> Pipeline:
        """The pipeline of *model* in *version*, as text; None takes what is served by default to *client*.

        Raises `NotReady` before the model is open, if it was refused, and while draining; `UnknownModel` if it is not what is served.
        """
        pipeline = self._opened()
        served = pipeline.classifier
        if model is not None and model != served.name:
            raise UnknownModel(f"model {model[:80]!r} is not served; served: {served.name}")
        if version is not None and version != str(served.version):
            raise UnknownModel(f"version {version[:40]!r} of {served.name} is not served; served: {served.version}")
        return pipeline

    def served(self) -> list[Classifier]:
        """The models that take requests, by name. Raises `NotReady` as `pipeline`."""
        return [self._opened().classifier]

    def _opened(self) -> Pipeline:
        if self._pipeline is not None:
            return self._pipeline
        if self._draining:
            raise NotReady("the service is shutting down; send the request to another instance", retry_after_s=1.0)
        if self._failure is not None:
            raise NotReady(f"the model was refused: {self._failure}")
        raise NotReady("the model is being verified and warmed up; ask /readyz", retry_after_s=1.0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the model in a thread, so that probes are answered if it takes long; at the end, answer what was accepted."""
        opening = asyncio.create_task(self._open(), name="open model")
        try:
            await asyncio.wait({opening}, timeout=OPENING_PATIENCE_S)
            yield
        finally:
            self._draining = True
            # A thread cannot be cancelled: an opening that is under way is waited for, as it takes a second at most.
            await opening
            pipeline, self._pipeline = self._pipeline, None
            if pipeline is not None:
                await pipeline.__aexit__(None, None, None)

    async def _open(self) -> None:
        try:
            classifier = await asyncio.to_thread(open_classifier, self.settings)
        except LoupeError as error:
            self._failure = error
            log.error("not ready: %s", error)  # noqa: TRY400 - the reason is in the message; a traceback would bury it
            return
        except Exception as error:
            self._failure = error
            log.exception("not ready: the model could not be opened")
            return
        threads = classifier.model.threads
        pipeline = Pipeline(
            classifier,
            decode_threads=self.settings.decode_threads or threads + 1,
            max_batch_size=self.settings.max_batch_size,
            max_queue_delay_s=self.settings.max_queue_delay_ms / 1000.0,
            max_queue_size=self.settings.max_queue_size,
            max_queue_bytes=self.settings.max_queue_bytes,
            decode_timeout_s=self.settings.decode_timeout_ms / 1000.0,
            max_in_flight=self.settings.max_in_flight,
        )
        await pipeline.__aenter__()
        METRICS.serving(classifier)
        self._pipeline = pipeline
        log.info("ready: %s version %d on %s, %d threads", classifier.name, classifier.version, classifier.model.provider, threads)


def open_classifier(settings: ServiceSettings) -> Classifier:
    """The classifier that *settings* ask for, verified and warm. Raises `LoupeError` with the reason."""
    return Classifier.open(
        model_reference(settings),
        store=settings.store,
        threads=settings.threads or threads_per_worker(settings.workers),
        provider=settings.provider,
        max_batch_size=settings.max_batch_size,
    )


def model_reference(settings: ServiceSettings) -> str:
    """The model that *settings* name, or the store's only one. Raises `UnknownModel` for an empty store, `ConfigError` for a choice of several."""
    if settings.model:
        return settings.model
    names = Store(settings.store).names()
    if not names:
        raise UnknownModel(f"the store {settings.store} has no model; `make demo` makes one, `loupe publish PACKAGE --name NAME` puts yours there")
    if len(names) > 1:
        raise ConfigError(f"the store {settings.store} has several models ({', '.join(names)}); say which with --model or LOUPE_MODEL")
    return names[0]

"""One worker process: opens its models, follows their aliases, and drains at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BadRequest, LoupeError, NotReady, UnknownModel
from models.package.manifest import MODEL_FILE
from models.store.store import ModelRef, Store
from service.engine.cache import AnswerCache
from service.engine.classifier import Classifier
from service.engine.pipeline import Observer, Pipeline
from service.http.body.fetching import Fetcher, parse_hosts
from service.inspection.inspector import Inspector
from service.observe.drift import DriftMonitor
from service.observe.metrics import FOLLOW_FAILURES, METRICS
from service.rollout.aliases import (
    EVERY_MODEL,
    AliasWatch,
    Complaints,
    Retry,
    selected_models,
)
from service.rollout.last_good_version import keep_versions, read_versions
from service.rollout.model_versions import ModelVersions
from service.rollout.opening import lane_cpus, lanes_of, open_classifier
from service.rollout.shadow import Shadow
from service.settings import ServiceSettings, metrics_folder

if TYPE_CHECKING:
    from service.observe.tracing import Tracing

log = logging.getLogger("loupe")

OPENING_PATIENCE_S = 5.0
"""A worker accepts connections once its models are open, or after this time.

Until then, other workers answer. Afterwards this one answers the probes, for a slow model."""


class Worker:
    """Holds the pipelines once their models are verified and warm.

    A model that is refused is tried again.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self._models: dict[str, ModelVersions] = {}
        """By name, the default model first. Empty until all are open, and while draining."""
        self._failure: Exception | None = None
        self._retry = Retry()
        self._complaints = Complaints()
        self._following: asyncio.Task[None] | None = None
        self.fetcher = Fetcher(
            parse_hosts(settings.url_hosts),
            max_bytes=settings.max_image_bytes,
            timeout_s=settings.url_timeout_ms / 1000.0,
        )
        """For images that a request names by URL."""
        self.inspector = Inspector()
        self._draining = False
        self._store = Store(settings.store)
        self._folder = metrics_folder()
        """Shared by the workers of this server; None outside a server."""
        self._watch: AliasWatch | None = None
        self._cache = (
            AnswerCache(limit_bytes=settings.cache_bytes) if settings.cache_bytes else None
        )
        self._drift = (
            DriftMonitor(
                budget=settings.drift_budget,
                window_s=settings.drift_window_s,
                folder=Path(self._folder) if self._folder else None,
            )
            if settings.drift_budget
            else None
        )
        self._shadow = (
            Shadow(self._shadow_of, share=settings.shadow_share) if settings.shadow_alias else None
        )
        self._observers: list[Observer] = [
            one.saw for one in (self._drift, self._shadow) if one is not None
        ]
        self.tracing: Tracing | None = None
        if settings.tracing:
            from service.observe.tracing import Tracing

            self.tracing = Tracing(settings.tracing, share=settings.tracing_share)
        METRICS.tracer = self.tracing
        if (drift := self._drift) is not None:
            METRICS.drift = lambda: drift.gauges(one.primary for one in self._models.values())

    def pipeline(
        self, model: str | None = None, version: str | None = None, *, client: str = ""
    ) -> Pipeline:
        """The pipeline of *model* in *version*, a number or an alias.

        None is the default model, and its version for *client*. The pipeline stays open until the
        current task ends. Raises `NotReady` before the models are open, if one was refused, and
        while draining; `UnknownModel` if it is not served; `BadRequest` without a default model.
        """
        models = self._opened()
        if model is None:
            if len(models) > 1 and self.settings.model == EVERY_MODEL:
                raise BadRequest(
                    f"several models are served ({', '.join(models)}); say which with model="
                )
            model = next(iter(models))
        if model not in models:
            raise UnknownModel(f"model {model[:80]!r} is not served; served: {', '.join(models)}")
        return models[model].pipeline(version, client=client)

    def served(self) -> list[Classifier]:
        """The version of each model that answers by default. Raises `NotReady` as `pipeline`."""
        return [model.primary for model in self._opened().values()]

    def catalogue(self) -> list[dict[str, object]]:
        """Each model: its default version, open versions and aliases. Raises `NotReady`."""
        return [model.described() for model in self._opened().values()]

    def open_hashes(self) -> list[str]:
        """The hash of `model.onnx` of every open version."""
        return [
            one.manifest.files[MODEL_FILE].sha256
            for model in self._opened().values()
            for one in model.open_classifiers()
        ]

    def is_alive(self) -> bool:
        """False if the task that follows the aliases has ended: only a restart repairs that.

        A worker with a refused model is alive, and tries it again.
        """
        return self._draining or self._following is None or not self._following.done()

    def _opened(self) -> dict[str, ModelVersions]:
        if self._models:
            return self._models
        if self._draining:
            raise NotReady(
                "the service is shutting down; send the request to another instance",
                retry_after_s=1.0,
            )
        if self._failure is not None:
            raise NotReady(f"the model was refused: {self._failure}")
        raise NotReady("the model is being verified and warmed up; ask /readyz", retry_after_s=1.0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the models in a thread while probes are answered; drain at the end."""
        opening = asyncio.create_task(self._open(), name="open models")
        self._following = asyncio.create_task(self._follow(opening), name="follow aliases")
        try:
            await asyncio.wait({opening}, timeout=OPENING_PATIENCE_S)
            yield
        finally:
            self._draining = True
            self._following.cancel()
            # A thread cannot be cancelled, so an opening under way is awaited. It takes seconds.
            await asyncio.wait({opening, self._following})
            models, self._models = self._models, {}
            await self.inspector.close()
            await asyncio.gather(*(model.close() for model in models.values()))
            await asyncio.to_thread(self._close_observers)

    async def _open(self) -> None:
        try:
            models = await self._open_all()
        except Exception as error:
            self._failure = error
            self._retry.failed()
            if self._complaints.is_new("opening", error):
                expected = isinstance(error, LoupeError)
                reason = str(error) if expected else "the models could not be opened"
                log.error("not ready: %s", reason, exc_info=None if expected else error)  # noqa: TRY400 - a traceback would bury the reason
        else:
            self._models, self._failure = models, None
            self._retry.succeeded()
            self._keep_good()
            served, lanes = self.served(), lanes_of(self.settings)
            log.info(
                "ready: %s on %s, %d threads, %s",
                ", ".join(f"{one.name} version {one.version}" for one in served),
                served[0].model.provider,
                served[0].model.threads,
                f"{lanes} lanes" if lanes else "in stages",
            )

    async def _open_all(self) -> dict[str, ModelVersions]:
        models = {
            selection.name: ModelVersions(
                selection,
                store=self._store,
                open_=self._open_version,
                canary=self.settings.canary_alias,
                canary_share=self.settings.canary_share,
            )
            for selection in await asyncio.to_thread(selected_models, self.settings)
        }
        # Before anything is opened, so that a move during the opening is seen.
        self._watch = AliasWatch(
            self._store, [name for name, model in models.items() if model.is_followed]
        )
        good = read_versions(self._folder)
        try:
            for name, model in models.items():
                await model.open(good.get(name))
        except BaseException:
            await asyncio.gather(*(model.close() for model in models.values()))
            raise
        return models

    async def _follow(self, opening: asyncio.Task[None]) -> None:
        """Serve what the store's aliases mean, whatever goes wrong.

        Each worker does this by itself: for a moment, two may answer with different versions.
        """
        await asyncio.wait({opening})
        while True:
            await asyncio.sleep(self.settings.follow_interval_s)
            try:
                await self._catch_up()
            except Exception as error:
                FOLLOW_FAILURES.inc()
                if self._complaints.is_new("following", error):
                    log.exception(
                        "the aliases could not be read; the service continues and tries again"
                    )
            else:
                self._complaints.succeeded("following")

    async def _catch_up(self) -> None:
        """Open the versions of moved aliases, and those that could not be opened before."""
        moved = [] if self._watch is None else await asyncio.to_thread(self._watch.moved)
        if not self._models:
            # Without a watch the store was empty: another look costs little.
            if moved or self._watch is None or self._retry.is_due:
                await self._open()
            return
        for name, model in self._models.items():
            if name in moved or model.retry.is_due:
                await model.follow()
                self._keep_good()

    async def _open_version(self, ref: ModelRef) -> Pipeline:
        classifier = await asyncio.to_thread(open_classifier, ref, self.settings)
        pipeline = Pipeline(
            classifier,
            cache=self._cache,
            observers=self._observers,
            lanes=lanes_of(self.settings),
            lane_cpus=lane_cpus(self.settings, threads=classifier.model.threads),
            decode_threads=self.settings.decode_threads or classifier.model.threads + 1,
            max_batch_size=self.settings.batch_limit,
            max_queue_delay_s=self.settings.max_queue_delay_ms / 1000.0,
            max_queue_size=self.settings.max_queue_size,
            max_queue_bytes=self.settings.max_queue_bytes,
            decode_timeout_s=self.settings.decode_timeout_ms / 1000.0,
            max_in_flight=self.settings.max_in_flight or 1,
        )
        await pipeline.__aenter__()
        return pipeline

    def _keep_good(self) -> None:
        keep_versions(
            self._folder, {name: model.primary.version for name, model in self._models.items()}
        )

    def _shadow_of(self, name: str) -> Classifier | None:
        model = self._models.get(name)
        return None if model is None else model.version_of(self.settings.shadow_alias)

    def _close_observers(self) -> None:
        METRICS.drift, METRICS.tracer = None, None
        for one in (self._drift, self._shadow, self.tracing):
            if one is not None:
                one.close()

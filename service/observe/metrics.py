"""Prometheus metrics: prefix `loupe_`, seconds as the unit, labels from closed sets only.

With several workers prometheus_client keeps each worker's values in files of the folder
`PROMETHEUS_MULTIPROC_DIR`, which `loupe serve` sets before anything is imported.
`service.observe.metric_files` looks after that folder.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from service.engine.threads import yield_to_event_loop
from service.observe.metric_files import claim_slot, samples_of_every_worker
from service.settings import metrics_folder

if TYPE_CHECKING:
    from service.engine.classifier import Classification, Classifier
    from service.engine.tickets import Timing
    from service.observe.tracing import Tracing

# Before the first metric.
if (_folder := metrics_folder()) is not None:
    claim_slot(Path(_folder))

CONTENT_TYPE = CONTENT_TYPE_LATEST
DURATION_BUCKETS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCE_BUCKETS = tuple(step / 10 for step in range(1, 11))

REQUESTS = Counter("loupe_requests_total", "Requests by route and HTTP status.", ["route", "code"])
REQUEST_DURATION = Histogram(
    "loupe_request_duration_seconds",
    "From the request's head until its answer is ready to be sent, its body and refusals included.",
    ["route"],
    buckets=DURATION_BUCKETS_S,
)
STAGE_DURATION = Histogram(
    "loupe_stage_duration_seconds",
    "Time of one image in a stage; inference is that of its whole batch.",
    ["stage"],
    buckets=DURATION_BUCKETS_S,
)
BATCH_SIZE = Histogram("loupe_batch_size", "Images in one run of the model.", buckets=BATCH_BUCKETS)
BATCH_DURATION = Histogram(
    "loupe_batch_duration_seconds", "Time of one run of the model.", buckets=DURATION_BUCKETS_S
)
QUEUE_DEPTH = Gauge("loupe_queue_depth", "Images that wait.", multiprocess_mode="livesum")
DECODERS_BUSY = Gauge(
    "loupe_decoders_busy",
    "Threads that decode, or lanes, at work; stuck ones among them.",
    multiprocess_mode="livesum",
)
REJECTED = Counter(
    "loupe_rejected_total", "Requests that got no answer, by problem code.", ["reason"]
)
PREDICTIONS = Counter(
    "loupe_predictions_total", "Images by likeliest class.", ["model", "version", "label"]
)
CONFIDENCE = Histogram(
    "loupe_confidence",
    "Highest probability of an image.",
    ["model", "version"],
    buckets=CONFIDENCE_BUCKETS,
)
MODEL_INFO = Gauge(
    "loupe_model_info",
    "The model that is served; always 1.",
    ["name", "version", "precision", "provider"],
    multiprocess_mode="livemax",
)
MODEL_FALLBACK = Gauge(
    "loupe_model_fallback",
    "1 while an int8 model is served by its fp32 sibling, otherwise 0.",
    ["name", "version"],
    multiprocess_mode="livemax",
)
LOAD_FAILURES = Counter(
    "loupe_model_load_failures_total",
    "Versions that could not be opened.",
    ["model"],
)
FOLLOW_FAILURES = Counter(
    "loupe_follow_failures_total", "How often a worker could not look at the store's aliases."
)
SWAPS = Counter(
    "loupe_model_swaps_total", "How often a worker went over to another version.", ["model"]
)
SHADOW = Counter(
    "loupe_shadow_total",
    "Images that the shadow answered too, by whether it agrees; dropped: too many waited.",
    ["model", "agree"],
)
CACHE_REQUESTS = Counter(
    "loupe_cache_requests_total", "Images looked for in the cache, by result.", ["result"]
)
KEYS_UNREADABLE = Gauge(
    "loupe_api_keys_unreadable",
    "1 while the file of API keys cannot be read, otherwise 0.",
    multiprocess_mode="livemax",
)
CERTIFICATE_END = Gauge(
    "loupe_tls_certificate_end_timestamp_seconds",
    "When the certificate in use ends, in seconds since 1970; 0 without TLS.",
    multiprocess_mode="livemax",
)
CACHE_BYTES = Gauge("loupe_cache_bytes", "Size of the answers kept.", multiprocess_mode="livesum")

NOT_SERVED = -1.0
ONLY_ONES = ("loupe_model_info", "loupe_model_fallback")
"""Their labels name versions. A version that is no longer served is left out of the exposition,
because prometheus_client cannot remove a series from a worker's file."""


M = TypeVar("M", bound=MetricWrapperBase)


@cache
def series(metric: M, *labels: str) -> M:
    """The series of *metric* with these *labels*.

    Cached: prometheus_client takes a lock for each look-up, ten times a request.
    """
    return metric.labels(*labels)


class Metrics:
    """Where the parts of the service report to.

    One for the process, as prometheus_client's registry is.
    """

    def __init__(self) -> None:
        self.drift: Callable[[], Iterable[Metric]] | None = None
        """Gives more metrics for each scrape."""
        self.supervision: Callable[[], Iterable[Metric]] | None = None
        """Gives what the supervisor knows of the workers."""
        self.tracer: Tracing | None = None
        self._served: dict[str, list[Classifier]] = {}

    def answered(
        self, classifier: Classifier, classification: Classification, timing: Timing
    ) -> None:
        """An image got *classification* just now."""
        self.predicted(classifier, classification)
        ended = time.time()
        self.stage("inference", timing.inference_s, ended=ended, about=(classifier, timing))
        self.stage("queue", timing.queue_s, ended=(ended := ended - timing.inference_s))
        self.stage("decode", timing.decode_s, ended=ended - timing.queue_s)

    def predicted(self, classifier: Classifier, classification: Classification) -> None:
        """*classifier* gives *classification*, now or when the same image came before."""
        version = str(classifier.version)
        top = classification.predictions[0]
        series(PREDICTIONS, classifier.name, version, top.label).inc()
        series(CONFIDENCE, classifier.name, version).observe(top.probability)

    def responded(
        self, route: str, status: int, seconds: float, *, problem_code: str | None
    ) -> None:
        """A request to the route template *route* was answered with *status*."""
        series(REQUESTS, route, str(status)).inc()
        series(REQUEST_DURATION, route).observe(seconds)
        if problem_code is not None:
            series(REJECTED, problem_code).inc()

    def stage(
        self,
        name: str,
        seconds: float,
        *,
        ended: float | None = None,
        about: tuple[Classifier, Timing] | None = None,
    ) -> None:
        """A stage took *seconds* and ended at *ended*, on the clock of `time.time`; None is now.

        The trace also says what the stage is *about*.
        """
        series(STAGE_DURATION, name).observe(seconds)
        if self.tracer is not None:
            self.tracer.stage(name, seconds=seconds, ended=ended or time.time(), about=about)

    def serving(self, name: str, classifiers: Sequence[Classifier]) -> None:
        """These *classifiers*, and no others of model *name*, take requests from now on."""
        for one in self._served.get(name, []):
            MODEL_INFO.labels(*_info(one)).set(NOT_SERVED)
            MODEL_FALLBACK.labels(one.name, str(one.version)).set(NOT_SERVED)
        for one in classifiers:
            MODEL_INFO.labels(*_info(one)).set(1)
            MODEL_FALLBACK.labels(one.name, str(one.version)).set(
                int(one.model.fallback is not None)
            )
        self._served[name] = list(classifiers)


METRICS = Metrics()


class _EveryWorker(Collector):
    """What the workers of this server counted, without the versions that are no longer served."""

    def collect(self) -> Iterator[Metric]:
        folder = metrics_folder()
        for metric in (
            REGISTRY.collect() if folder is None else samples_of_every_worker(Path(folder))
        ):
            if metric.name in ONLY_ONES:
                metric.samples = [one for one in metric.samples if one.value != NOT_SERVED]
            yield metric
        for more in (METRICS.drift, METRICS.supervision):
            if more is not None:
                yield from more()


def exposition() -> bytes:
    """All metrics of every worker in Prometheus' text format. On an event loop, use `SCRAPER`."""
    return generate_latest(_EveryWorker())


class Scraper:
    """Computes the exposition in one thread of low priority, once for all who ask meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "metrics", initializer=yield_to_event_loop)
        self._running: Future[bytes] | None = None

    async def text(self) -> bytes:
        """The exposition. It may be one that began just before this call."""
        if self._running is None or self._running.done():
            self._running = self._thread.submit(exposition)
        # Shielded: a client that leaves must not cancel it for the others.
        return await asyncio.shield(asyncio.wrap_future(self._running))


SCRAPER = Scraper()


class PoolMetrics:
    """Reports what one worker pool does; the gauges add up all pools."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._busy = 0

    def batch_done(self, size: int, seconds: float) -> None:
        """A batch of *size* images ran for *seconds*."""
        BATCH_SIZE.observe(size)
        BATCH_DURATION.observe(seconds)

    def depth_changed(self, depth: int) -> None:
        """*depth* images wait."""
        if depth != self._depth:
            with self._lock:
                QUEUE_DEPTH.inc(depth - self._depth)
                self._depth = depth

    def busy_changed(self, threads: int) -> None:
        """*threads* threads that decode are at work."""
        if threads != self._busy:
            with self._lock:
                DECODERS_BUSY.inc(threads - self._busy)
                self._busy = threads


def _info(classifier: Classifier) -> tuple[str, str, str, str]:
    return (
        classifier.name,
        str(classifier.version),
        classifier.model.precision,
        classifier.model.provider,
    )

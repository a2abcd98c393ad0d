"""Prometheus metrics: prefix `loupe_`, seconds as the unit, labels from closed sets only.

With several workers prometheus_client keeps each process's values in files of `PROMETHEUS_MULTIPROC_DIR`, which must be set before
it is imported: `loupe serve` does so, with a folder of its own for each server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.settings import metrics_folder

if TYPE_CHECKING:
    from service.classifier import Classification, Classifier
    from service.pipeline import Timing

CONTENT_TYPE = CONTENT_TYPE_LATEST
DURATION_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCE_BUCKETS = tuple(step / 10 for step in range(1, 11))

REQUESTS = Counter("loupe_requests_total", "Requests by route and HTTP status.", ["route", "code"])
REQUEST_DURATION = Histogram("loupe_request_duration_seconds", "From the first byte to the answer.", ["route"], buckets=DURATION_BUCKETS_S)
STAGE_DURATION = Histogram(
    "loupe_stage_duration_seconds",
    "Time of one image in a stage; inference is that of its whole batch.",
    ["stage"],
    buckets=DURATION_BUCKETS_S,
)
BATCH_SIZE = Histogram("loupe_batch_size", "Images in one run of the model.", buckets=BATCH_BUCKETS)
BATCH_DURATION = Histogram("loupe_batch_duration_seconds", "Time of one run of the model.", buckets=DURATION_BUCKETS_S)
QUEUE_DEPTH = Gauge("loupe_queue_depth", "Images that wait for the model.", multiprocess_mode="livesum")
DECODERS_BUSY = Gauge("loupe_decoders_busy", "Decoding threads at work, stuck ones among them.", multiprocess_mode="livesum")
REJECTED = Counter("loupe_rejected_total", "Requests that got no answer, by problem code.", ["reason"])
PREDICTIONS = Counter("loupe_predictions_total", "Images by likeliest class.", ["model", "version", "label"])
CONFIDENCE = Histogram("loupe_confidence", "Highest probability of an image.", ["model", "version"], buckets=CONFIDENCE_BUCKETS)
MODEL_INFO = Gauge(
    "loupe_model_info", "The model that is served; always 1.", ["name", "version", "precision", "provider"], multiprocess_mode="livemax"
)
MODEL_FALLBACK = Gauge(
    "loupe_model_fallback", "1 while an int8 model is served by its fp32 sibling, otherwise 0.", ["name", "version"], multiprocess_mode="livemax"
)


class Metrics:
    """Where the parts of the service report to. One for the process, as prometheus_client's registry is."""

    def batch_done(self, size: int, seconds: float) -> None:
        """A batch of *size* images ran for *seconds*."""
        BATCH_SIZE.observe(size)
        BATCH_DURATION.observe(seconds)

    def depth_changed(self, depth: int) -> None:
        """*depth* images wait for the model."""
        QUEUE_DEPTH.set(depth)

    def decoders_busy(self, threads: int) -> None:
        """*threads* decoding threads are at work."""
        DECODERS_BUSY.set(threads)

    def answered(self, classifier: Classifier, classification: Classification, timing: Timing) -> None:
        """An image got *classification*."""
        version = str(classifier.version)
        top = classification.predictions[0]
        PREDICTIONS.labels(classifier.name, version, top.label).inc()
        CONFIDENCE.labels(classifier.name, version).observe(top.probability)
        STAGE_DURATION.labels("decode").observe(timing.decode_s)
        STAGE_DURATION.labels("queue").observe(timing.queue_s)
        STAGE_DURATION.labels("inference").observe(timing.inference_s)

    def responded(self, route: str, status: int, seconds: float, *, problem_code: str | None) -> None:
        """A request to the route template *route* was answered with *status*."""
        REQUESTS.labels(route, str(status)).inc()
        REQUEST_DURATION.labels(route).observe(seconds)
        if problem_code is not None:
            REJECTED.labels(problem_code).inc()

    def stage(self, name: str, seconds: float) -> None:
        """A stage outside the pipeline, `read` or `respond`, took *seconds*."""
        STAGE_DURATION.labels(name).observe(seconds)

    def serving(self, classifier: Classifier) -> None:
        """*classifier* is verified, warm and takes requests."""
        model, version = classifier.model, str(classifier.version)
        MODEL_INFO.labels(classifier.name, version, model.precision, model.provider).set(1)
        MODEL_FALLBACK.labels(classifier.name, version).set(int(model.fallback is not None))


METRICS = Metrics()


def exposition() -> bytes:
    """All metrics in Prometheus' text format: of every worker where there are several."""
    if metrics_folder() is None:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)

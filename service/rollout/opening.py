"""Opens a version as the settings want it run: how many threads, how many lanes, on which CPUs."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from models.machine import cpus_of_process, threads_per_worker
from models.runtime.session import warm_up
from models.store.store import ModelRef
from service.engine.classifier import Classifier
from service.settings import ServiceSettings

FEW_CPUS = 2
"""Up to so many CPUs, each lane is pinned to one. The gain was measured on two."""

QUICK_S = 0.01
"""A model is quick if one core answers an image within this time.

With two cores, MobileNetV3-small takes less CPU time with one thread. ResNet-50 answers a single
image in 0.6 of the time with two."""


def open_classifier(ref: ModelRef, settings: ServiceSettings) -> Classifier:
    """The classifier of version *ref*, verified and warm. Raises `LoupeError` with the reason.

    With lanes and no set number of threads, a quick model gets one thread for each core that no
    other lane takes: images side by side use the cores better than one image cut into pieces. A
    slow model gets all cores. Otherwise an image alone would wait for one core while others rest.
    """
    open_with = partial(
        Classifier.open,
        f"{ref.name}:{ref.version}",
        store=settings.store,
        provider=settings.provider,
        limits=settings.limits,
    )
    cores, lanes = threads_per_worker(settings.workers), lanes_of(settings)
    few = max(1, cores // lanes) if lanes else cores
    if not settings.threads and few != cores and settings.provider == "cpu":
        # Warmed for one image until its speed is known: a slow model takes long for a batch.
        classifier = open_with(threads=few)
        if _core_s(classifier) <= QUICK_S:
            warm_up(classifier.model, (settings.batch_limit,))
            return classifier
        # Before the next one opens: two sessions at a time would double the memory.
        del classifier
    return open_with(threads=settings.threads or cores, max_batch_size=settings.batch_limit)


def _core_s(classifier: Classifier) -> float:
    """CPU time of one image in a model of one thread, in seconds.

    Unlike wall time, it does not count other processes.
    """
    height, width = classifier.manifest.preprocess.crop
    pixels_NHWC = np.zeros((1, height, width, 3), dtype=np.uint8)
    spent_s = []
    for _ in range(3):
        begun_s = time.thread_time()
        classifier.model.run(pixels_NHWC)
        spent_s.append(time.thread_time() - begun_s)
    return min(spent_s)


def lanes_of(settings: ServiceSettings) -> int:
    """How many lanes each pipeline has; 0 is for stages."""
    if settings.lanes:
        return settings.lanes
    return 0 if settings.in_stages else threads_per_worker(settings.workers)


def lane_cpus(settings: ServiceSettings, *, threads: int) -> tuple[int, ...]:
    """The CPU that each lane is pinned to; empty without pinning.

    Lanes are pinned if the only worker has a lane of one thread for each of its few CPUs.
    Without pinning, a tenth of two cores was idle at saturation: Linux tends to leave both lanes on
    one core. On many cores a waking lane finds a free one, and pinning would make it wait. With
    fewer lanes than CPUs, another service could pin its lanes to the same ones.
    """
    cpus = cpus_of_process()
    return (
        cpus
        if settings.workers == 1 and threads == 1 and len(cpus) == lanes_of(settings) <= FEW_CPUS
        else ()
    )

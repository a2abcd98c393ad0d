"""Whether what is asked looks like what the model was judged on: counts of a sliding window,
compared when Prometheus asks.

An image is measured beside its answer, by a run of its own in a thread of low priority, and only as
often as a set share of one core's time allows: no client waits for it, and a large model is sampled
less. Nothing of an image is kept but its share in some counts. Each worker writes its counts into a
file of its own; whichever worker is scraped adds all files up, also those of workers that died,
whose images were real. The slots of a window are of the wall clock, so that old counts fall out of
every file alike.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from prometheus_client.core import GaugeMetricFamily, Metric

from models.package.manifest import Histogram
from models.runtime import drift_signals
from service.engine.background import Aside
from service.engine.classifier import Classification, Classifier

SLOTS = 12
"""Parts of a window; the oldest is dropped whole."""
WAITING = 2
"""Images that may wait to be measured: the next one is as good as this one."""
FILES = "drift_*.json"

Counts = dict[str, list[int]]
"""Signal -> count of each bin."""
Slots = dict[str, dict[str, Counts]]
"""Slot, as text -> `name:version` -> counts."""


class DriftMonitor:
    """Measures what it is shown, within *budget*, a share of one core's time.

    *folder* is where all workers of a server keep counts.
    """

    def __init__(
        self,
        *,
        budget: float,
        window_s: int,
        folder: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._budget = budget
        self._slot_s = window_s / SLOTS
        self._file = None if folder is None else folder / f"drift_{os.getpid()}.json"
        self._clock = clock
        self._slots: Slots = {}
        self._not_before = 0.0
        self._aside = Aside("drift", capacity=WAITING)

    def saw(self, classifier: Classifier, encoded: bytes, _: Classification) -> None:
        """*encoded* was answered by *classifier*; perhaps it is measured. A `Witness`."""
        if time.monotonic() >= self._not_before:
            # Until this one is measured nobody knows what it costs.
            self._not_before = float("inf")
            if not self._aside.offer(lambda: self._measure(classifier, encoded)):
                self._not_before = 0.0

    def close(self) -> None:
        """Measure nothing more."""
        self._aside.close()

    def windows(self) -> dict[str, Counts]:
        """Counts of the window, of all workers, for each `name:version`."""
        oldest = self._slot() - SLOTS + 1
        total: dict[str, Counts] = {}
        for slots in self._all_slots(oldest):
            for slot, models in slots.items():
                if int(slot) >= oldest:
                    for model, counts in models.items():
                        _add(total.setdefault(model, {}), counts)
        return total

    def _measure(self, classifier: Classifier, encoded: bytes) -> None:
        started = time.monotonic()
        try:
            self._count(f"{classifier.name}:{classifier.version}", bins(classifier, encoded))
            self._write()
        finally:
            ended = time.monotonic()
            self._not_before = ended + (ended - started) * (1.0 / self._budget - 1.0)

    def _count(self, model: str, found: Iterable[tuple[str, int, int]]) -> None:
        slot = self._slot()
        for old in [name for name in self._slots if int(name) <= slot - SLOTS]:
            del self._slots[old]
        counts = self._slots.setdefault(str(slot), {}).setdefault(model, {})
        for signal, place, length in found:
            counts.setdefault(signal, [0] * length)[place] += 1

    def _write(self) -> None:
        if self._file is not None:
            # Replaced at once: another worker may be reading.
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._slots, separators=(",", ":")), encoding="ascii")
            temporary.replace(self._file)

    def _all_slots(self, oldest: int) -> Iterator[Slots]:
        """Of every worker.

        The file of another one that has nothing since slot *oldest* goes: it died, or writes it
        anew.
        """
        if self._file is None:
            yield self._slots
            return
        for path in self._file.parent.glob(FILES):
            with suppress(FileNotFoundError):
                slots: Slots = json.loads(path.read_text(encoding="ascii"))
                if path != self._file and all(int(slot) < oldest for slot in slots):
                    path.unlink()
                yield slots

    def _slot(self) -> int:
        return int(self._clock() // self._slot_s)


def bins(classifier: Classifier, encoded: bytes) -> list[tuple[str, int, int]]:
    """For each signal its name, the bin that the image falls into, and how many bins there are."""
    reference = classifier.manifest.reference
    pixels_HWC = classifier.decode(encoded)
    outputs = classifier.model.run(pixels_HWC[np.newaxis], _outputs(classifier))
    probabilities_K = outputs["probabilities"][0]
    values = {
        "confidence": (float(probabilities_K.max()), reference.confidence),
        "brightness": (drift_signals.brightness(pixels_HWC), reference.brightness),
        "sharpness": (drift_signals.sharpness(pixels_HWC), reference.sharpness),
    }
    if "embedding" in outputs:
        mean_D = np.asarray(reference.embedding_mean, dtype=np.float32)
        values["embedding_distance"] = (
            float(drift_signals.embedding_distance(outputs["embedding"], mean_D)[0]),
            reference.embedding_distance,
        )
    found = [
        (signal, _bin(value, histogram), len(histogram.counts))
        for signal, (value, histogram) in values.items()
    ]
    return [("predicted", int(probabilities_K.argmax()), len(reference.predicted)), *found]


class DriftCollector:
    """`loupe_drift_psi` and `loupe_drift_images` of the *served* classifiers, computed when
    Prometheus asks.
    """

    def __init__(self, monitor: DriftMonitor, served: Callable[[], Iterable[Classifier]]) -> None:
        self._monitor = monitor
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """The two metrics."""
        index = GaugeMetricFamily(
            "loupe_drift_psi",
            "How far the window's images are from the evaluation's; 0.25 is an alarm.",
            labels=["model", "signal"],
        )
        images = GaugeMetricFamily(
            "loupe_drift_images",
            "Images in the window that drift is measured on.",
            labels=["model"],
        )
        windows = self._monitor.windows()
        for classifier in self._served():
            counts = windows.get(f"{classifier.name}:{classifier.version}", {})
            images.add_metric([classifier.name], float(sum(counts.get("predicted", []))))
            expected = drift_signals.expected_counts(classifier.manifest.reference)
            for signal, found in counts.items():
                if sum(found) >= drift_signals.LEAST_IMAGES:
                    index.add_metric(
                        [classifier.name, signal], drift_signals.psi(expected[signal], found)
                    )
        yield index
        yield images


def _outputs(classifier: Classifier) -> tuple[str, ...]:
    """`embedding` only where it falls out on the way to the answer, as in every network of the zoo:
    a second session would cost its memory.
    """
    computed = classifier.model.answer_outputs
    return ("probabilities", "embedding") if "embedding" in computed else ("probabilities",)


def _bin(value: float, histogram: Histogram) -> int:
    """The bin of *value*; what lies outside goes into the first or last.

    As `models.runtime.drift_signals.histogram` counts.
    """
    place = int(np.searchsorted(histogram.edges, value, side="right")) - 1
    return min(max(place, 0), len(histogram.counts) - 1)


def _add(total: Counts, counts: Counts) -> None:
    for signal, values in counts.items():
        before = total.get(signal)
        total[signal] = (
            list(values) if before is None else [a + b for a, b in zip(before, values, strict=True)]
        )

"""Drift: whether today's images look like those that the model was evaluated on.

An image is measured after its answer, by a run of its own in a thread of low priority, and only as
often as a set share of one core's time allows. No client waits for it, and a large model is sampled
less. Only counts are kept, in slots of a sliding window, and nothing of an image. Each worker
writes its counts to a file. The worker that is scraped adds up all files, those of dead workers
too. Slots follow the wall clock, so that old counts leave all files at the same time.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from prometheus_client.core import GaugeMetricFamily, Metric

from models.runtime import drift_signals
from service.engine.background import BackgroundThread
from service.engine.classifier import Classification, Classifier

log = logging.getLogger("loupe")

SLOTS = 12
"""Parts of a window. The oldest is dropped as a whole."""
WAITING = 2
"""Images that may wait to be measured."""
FILES = "drift_*.json"

Counts = dict[str, list[int]]
"""Signal -> count of each bin."""
Slots = dict[str, dict[str, Counts]]
"""Slot, as text -> `name:version` -> counts."""


class DriftMonitor:
    """Measures images within *budget*, a share of one core's time.

    All workers of a server keep their counts in *folder*.
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
        self._writes = True
        self._thread = BackgroundThread("drift", capacity=WAITING)

    def saw(self, classifier: Classifier, encoded: bytes, _: Classification) -> None:
        """Measure *encoded*, which *classifier* has answered, if the budget allows it."""
        if classifier.manifest.reference is None:
            return
        if time.monotonic() >= self._not_before:
            # Its cost is known only after it was measured.
            self._not_before = float("inf")
            if not self._thread.offer(lambda: self._measure(classifier, encoded)):
                self._not_before = 0.0

    def close(self) -> None:
        """Measure nothing more."""
        self._thread.close()

    def windows(self) -> dict[str, Counts]:
        """Counts of the window, of all workers, for each `name:version`."""
        oldest = self._slot() - SLOTS + 1
        total: dict[str, Counts] = {}
        for slots in self._all_slots(oldest):
            recent = [models for slot, models in slots.items() if int(slot) >= oldest]
            for model, counts in itertools.chain.from_iterable(one.items() for one in recent):
                _add(total.setdefault(model, {}), counts)
        return total

    def gauges(self, served: Iterable[Classifier]) -> Iterator[Metric]:
        """`loupe_drift_psi` and `loupe_drift_images` of the *served* classifiers, for a scrape."""
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
        windows = self.windows()
        for classifier in served:
            reference = classifier.manifest.reference
            if reference is None:
                continue
            counts = windows.get(f"{classifier.name}:{classifier.version}", {})
            images.add_metric([classifier.name], float(sum(counts.get("predicted", []))))
            expected = drift_signals.expected_counts(reference)
            for signal, found in counts.items():
                if sum(found) >= drift_signals.LEAST_IMAGES:
                    index.add_metric(
                        [classifier.name, signal], drift_signals.psi(expected[signal], found)
                    )
        yield index
        yield images

    def _measure(self, classifier: Classifier, encoded: bytes) -> None:
        started = time.monotonic()
        try:
            self._keep(f"{classifier.name}:{classifier.version}", counts_of(classifier, encoded))
        finally:
            ended = time.monotonic()
            self._not_before = ended + (ended - started) * (1.0 / self._budget - 1.0)

    def _keep(self, model: str, counts: Counts) -> None:
        slot = self._slot()
        self._slots = {name: old for name, old in self._slots.items() if int(name) > slot - SLOTS}
        _add(self._slots.setdefault(str(slot), {}).setdefault(model, {}), counts)
        if self._file is not None:
            self._write(self._file)

    def _write(self, file: Path) -> None:
        """Replace *file* at once, as another worker may be reading. A full disk is said once.

        The counts stay in memory, and the next write has them all.
        """
        temporary = file.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(self._slots, separators=(",", ":")), encoding="ascii")
            temporary.replace(file)
        except OSError as error:
            if self._writes:
                log.warning(
                    "drift counts cannot be written, and are kept until they can: %s", error
                )
            self._writes = False
        else:
            self._writes = True

    def _all_slots(self, oldest: int) -> Iterator[Slots]:
        """Those of every worker.

        Removes the files of other workers without counts since slot *oldest*: they died, or will
        write their file again.
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


def counts_of(classifier: Classifier, encoded: bytes) -> Counts:
    """One image as counts: in each signal, 1 in the bin that it falls into."""
    reference, model = classifier.manifest.reference, classifier.model
    assert reference is not None, "nothing is measured without one"
    pixels_HWC = classifier.decode(encoded)
    # `embedding` only where the answer computes it anyway, as in every network of the zoo: a second
    # session would cost its memory.
    asked = [name for name in ("probabilities", "embedding") if name in model.answer_outputs]
    outputs = model.run(pixels_HWC[np.newaxis], asked)
    predicted = outputs["probabilities"].argmax(axis=1)
    return {
        "predicted": np.bincount(predicted, minlength=len(reference.predicted)).tolist(),
        **drift_signals.counts(
            reference,
            probabilities_NK=outputs["probabilities"],
            embedding_ND=outputs.get("embedding"),
            samples=[pixels_HWC],
        ),
    }


def _add(total: Counts, counts: Counts) -> None:
    for signal, values in counts.items():
        before = total.get(signal, [0] * len(values))
        total[signal] = [a + b for a, b in zip(before, values, strict=True)]

"""Drift: which images are measured, what is counted, how long, and that workers add up."""

import json
import time

import numpy as np
import pytest

from models.runtime import drift_signals
from service.engine.classifier import Classifier
from service.observe.drift import SLOTS, DriftMonitor, counts_of
from tests.models.packages import build_package, encode_png
from tests.service.held import PATIENCE_S

LABELS = ("ant", "bee", "cow")
WINDOW_S = 1200


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Classifier:
    return Classifier.open(
        build_package(tmp_path_factory.mktemp("drift") / "tiny", labels=LABELS), threads=1
    )


def photo(seed: int, *, high: int = 256) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, high, size=(8, 8, 3), dtype=np.uint8))


class Clock:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def monitor(clock: Clock, **options: object) -> DriftMonitor:
    return DriftMonitor(**{"budget": 1.0, "window_s": WINDOW_S, "clock": clock, **options})


def show(target: DriftMonitor, classifier: Classifier, photos: list[bytes]) -> None:
    """Let *target* measure every one of *photos*."""
    for encoded in photos:
        before = total(target)
        started = time.monotonic()
        while total(target) == before:
            target.saw(classifier, encoded, classifier.classify([encoded])[0])
            assert time.monotonic() - started < PATIENCE_S
            time.sleep(0.001)


def total(target: DriftMonitor) -> int:
    return sum(sum(counts["predicted"]) for counts in target.windows().values())


def gauges(target: DriftMonitor, classifier: Classifier) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in target.gauges([classifier])
        for sample in metric.samples
    }


def test_an_image_falls_into_the_bins_that_the_reference_would_count_it_in(opened):
    manifest = opened.manifest
    for seed in range(20):
        found = counts_of(opened, photo(seed, high=12 * seed + 10))
        pixels_HWC = opened.decode(photo(seed, high=12 * seed + 10))
        outputs = opened.model.run(pixels_HWC[np.newaxis], ("probabilities", "embedding"))
        distance = drift_signals.embedding_distance(
            outputs["embedding"], np.array(manifest.reference.embedding_mean, dtype=np.float32)
        )
        values = {
            "confidence": outputs["probabilities"].max(),
            "brightness": drift_signals.brightness(pixels_HWC),
            "sharpness": drift_signals.sharpness(pixels_HWC),
            "embedding_distance": distance[0],
        }
        for signal, value in values.items():
            edges = getattr(manifest.reference, signal).edges
            assert found[signal] == list(drift_signals.histogram([float(value)], edges).counts)
        assert found["predicted"] == [
            int(label == outputs["probabilities"].argmax()) for label in range(len(LABELS))
        ]
        assert found.keys() == drift_signals.expected_counts(manifest.reference).keys()


def test_old_counts_fall_out_of_the_window(opened):
    clock = Clock()
    target = monitor(clock)
    show(target, opened, [photo(1), photo(2)])
    clock.now += WINDOW_S / SLOTS * (SLOTS - 1)
    show(target, opened, [photo(3)])
    assert total(target) == 3
    clock.now += WINDOW_S / SLOTS
    assert total(target) == 1
    target.close()


def test_workers_add_up_and_the_counts_of_one_that_died_stay(opened, tmp_path):
    clock = Clock()
    target = monitor(clock, folder=tmp_path)
    show(target, opened, [photo(seed) for seed in range(5)])
    (own,) = tmp_path.glob("drift_*.json")
    (tmp_path / "drift_999999.json").write_bytes(own.read_bytes())
    assert total(target) == 10
    assert b"PNG" not in own.read_bytes()
    assert len(own.read_bytes()) < 1000, "counts, and nothing of the images"
    target.close()


def test_counts_that_cannot_be_written_are_kept_and_said_once(opened, tmp_path, caplog):
    folder = tmp_path / "later"
    target = monitor(Clock(), folder=folder)
    counts = counts_of(opened, photo(1))
    for _ in range(3):
        target._keep("ants:1", counts)
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("drift counts cannot be written, and are kept until they can: ")
    folder.mkdir()
    target._keep("ants:1", counts)
    assert total(target) == 4
    target.close()


def test_the_file_of_a_dead_worker_goes_once_its_window_is_over(opened, tmp_path):
    clock = Clock()
    target = monitor(clock, folder=tmp_path)
    show(target, opened, [photo(1)])
    (own,) = tmp_path.glob("drift_*.json")
    other = tmp_path / "drift_999999.json"
    other.write_bytes(own.read_bytes())
    clock.now += WINDOW_S
    assert total(target) == 0
    assert not other.exists()
    assert own.exists()
    target.close()


def test_the_index_is_told_once_there_are_enough_images(opened, tmp_path):
    clock = Clock()
    target = monitor(clock, folder=tmp_path)
    slot = str(int(clock.now // (WINDOW_S / SLOTS)))

    def another_worker_counted(images: int) -> None:
        same = {
            name: [images * count // sum(counts) for count in counts]
            for name, counts in drift_signals.expected_counts(opened.manifest.reference).items()
        }
        dark = {**same, "brightness": [images, 0]}
        (tmp_path / "drift_999999.json").write_text(
            json.dumps({slot: {f"{opened.name}:{opened.version}": dark, "other:1": dark}}),
            encoding="ascii",
        )

    another_worker_counted(98)
    assert gauges(target, opened) == {("loupe_drift_images", opened.name): 98.0}
    another_worker_counted(200)
    found = gauges(target, opened)
    assert found.pop(("loupe_drift_images", opened.name)) == 200.0
    assert found.pop(("loupe_drift_psi", opened.name, "brightness")) > 0.25
    assert found == {
        ("loupe_drift_psi", opened.name, name): 0.0
        for name in ("predicted", "confidence", "sharpness", "embedding_distance")
    }
    target.close()


def test_no_more_time_is_spent_than_the_budget(opened):
    """A hundredth: after a measurement of t, the next one begins 99 t later or more."""
    clock, measured = Clock(), []
    target = monitor(clock, budget=0.01)
    really = target._keep

    def slow(*counted: object) -> None:
        started = time.monotonic()
        while time.monotonic() - started < 0.02:
            pass
        measured.append(time.monotonic())
        really(*counted)

    target._keep = slow
    answer = opened.classify([photo(1)])[0]
    started = time.monotonic()
    while time.monotonic() - started < 0.5:
        target.saw(opened, photo(1), answer)
        time.sleep(0.001)
    target.close()
    # 0.02 s are a hundredth of 2 s.
    assert len(measured) == 1

"""The shadow and the thread that works beside the answers: what it does is bounded, what it cannot
do is dropped, and no one waits for it.
"""

import logging
import os
import sys
import threading

import pytest
from prometheus_client import REGISTRY

from service.engine.background import NICENESS, BackgroundThread
from service.engine.classifier import Classifier
from service.rollout.shadow import WAITING, Shadow
from tests.models.packages import build_package
from tests.service.held import PATIENCE_S

LABELS = ("ant", "bee", "cow")


def opened(folder, version: int, *, seed: int) -> Classifier:
    found = Classifier.open(
        build_package(folder / str(version), labels=LABELS, seed=seed), threads=1
    )
    return Classifier(found.model, name="shadowed", version=version)


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> tuple[Classifier, Classifier]:
    folder = tmp_path_factory.mktemp("shadow")
    return opened(folder, 1, seed=0), opened(folder, 2, seed=1)


def counted(agree: str) -> float:
    return (
        REGISTRY.get_sample_value("loupe_shadow_total", {"model": "shadowed", "agree": agree})
        or 0.0
    )


def test_agreement_is_counted_against_what_was_answered(versions):
    production, candidate = versions
    photos = [
        path.read_bytes()
        for one in versions
        for path in sorted((one.model.path / "golden").glob("*.png"))
    ]
    assert len(photos) == 6
    answers, others = production.classify(photos, top_k=1), candidate.classify(photos, top_k=1)
    agreed = sum(
        a.predictions[0].label == b.predictions[0].label
        for a, b in zip(answers, others, strict=True)
    )
    before = counted("yes"), counted("no")
    shadow = Shadow(lambda _: candidate, share=1.0)
    for encoded, answer in zip(photos, answers, strict=True):
        shadow.saw(production, encoded, answer)
    shadow._thread._thread.shutdown(wait=True)
    assert (counted("yes") - before[0], counted("no") - before[1]) == (agreed, len(photos) - agreed)


def test_what_is_too_much_is_dropped_and_counted_while_no_one_waits(versions):
    production, candidate = versions
    encoded = (production.model.path / "golden" / "0.png").read_bytes()
    (answer,) = production.classify([encoded])
    go = threading.Event()

    class Slow(Classifier):
        """Held until the test says so."""

        def decode(self, encoded: bytes):
            assert go.wait(PATIENCE_S)
            return super().decode(encoded)

    shadow = Shadow(lambda _: Slow(candidate.model, name="shadowed", version=2), share=1.0)
    before = counted("dropped")
    for _ in range(WAITING + 5):
        shadow.saw(production, encoded, answer)
    assert counted("dropped") - before == 5
    go.set()
    shadow.close()


@pytest.mark.parametrize("candidate", ["absent", "the same version"])
def test_without_another_version_nothing_is_compared(versions, candidate):
    production = versions[0]
    encoded = (production.model.path / "golden" / "0.png").read_bytes()
    before = [counted(agree) for agree in ("yes", "no", "dropped")]
    shadow = Shadow(lambda _: None if candidate == "absent" else production, share=1.0)
    shadow.saw(production, encoded, production.classify([encoded])[0])
    shadow.close()
    assert [counted(agree) for agree in ("yes", "no", "dropped")] == before


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere threads have no niceness of their own"
)
def test_the_thread_steps_back_and_no_other_does():
    found = []
    thread = BackgroundThread("test", capacity=1)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert thread.offer(
        lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    )
    thread._thread.shutdown(wait=True)
    assert found == [NICENESS]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_a_failure_beside_the_answers_is_logged_and_the_thread_goes_on(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)
    done = threading.Event()
    thread = BackgroundThread("test", capacity=2)
    assert thread.offer(lambda: 1 / 0)
    assert thread.offer(done.set)
    assert done.wait(PATIENCE_S)
    thread.close()
    assert caplog.messages == ["background work failed"]
    assert not thread.offer(done.set), "closed"

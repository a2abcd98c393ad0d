"""Promoting and rolling back under load, over real sockets with two workers: no request fails, and
every answer is its version's own.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from models.store.store import Store
from service.engine.classifier import Classifier
from tests.http.conftest import LABELS, make_photo
from tests.http.server import ANSWER_PATIENCE_S, POLL_S, Server, serving
from tests.http.test_metrics import scrape, value
from tests.models.packages import build_package

CLIENTS = 6
PHOTOS = 12
VERSIONS = (1, 2, 3)
BROKEN = 4
FOLLOW_S = 0.1
PATIENCE_S = 30.0
ROUNDING = 1e-5
"""float32 sums of some dozen terms; a batch may add them in another order."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of this module's own, with three versions that come and go, and one that is damaged
    after it was published.
    """
    store = Store(tmp_path_factory.mktemp("store"))
    for seed in (*VERSIONS, BROKEN):
        store.publish(
            build_package(
                tmp_path_factory.mktemp("packages") / str(seed), labels=LABELS, seed=seed
            ),
            name="zoo",
        )
    store.promote("zoo", 3, alias="candidate")
    golden = store.root / "zoo" / str(BROKEN) / "golden" / "0.png"
    golden.write_bytes(golden.read_bytes()[:-1] + b"x")
    return store


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, zoo: Store) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(
        folder,
        store=zoo.root,
        workers=2,
        follow_interval_s=FOLLOW_S,
        drift_budget=1.0,
        shadow_alias="candidate",
    ) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


class Hammer:
    """Clients that ask without a pause, and remember every answer."""

    def __init__(self, url: str, photos: list[bytes]) -> None:
        self._url = url
        self._photos = photos
        self._stop = threading.Event()
        self.answers: list[tuple[int, int, dict[str, object]]] = []
        """Number of the photo, HTTP status, body."""

    def client(self, first: int) -> None:
        """Ask until told to stop."""
        number = first
        with httpx.Client(base_url=self._url, timeout=ANSWER_PATIENCE_S, trust_env=False) as client:
            while not self._stop.is_set():
                number = (number + 1) % len(self._photos)
                response = client.post("/v1/classify?top_k=7", content=self._photos[number])
                self.answers.append((number, response.status_code, response.json()))

    def stop(self) -> None:
        """Let every client finish what it asked."""
        self._stop.set()

    def wait_for(self, version: int, *, alone: int) -> None:
        """Return once the last *alone* answers are of *version*: then every worker serves it."""
        started = time.monotonic()
        while True:
            last = self.answers[-alone:]
            if len(last) == alone and all(
                body.get("model") == {"name": "zoo", "version": version} for _, _, body in last
            ):
                return
            assert time.monotonic() - started < PATIENCE_S, (
                f"not all went over to {version}: {last[-3:]}"
            )
            time.sleep(POLL_S)


def probabilities(body: dict) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in body["predictions"]}


def test_no_request_fails_while_versions_come_and_go(running: Server, zoo: Store, record_property):
    photos = [make_photo(seed) for seed in range(PHOTOS)]
    expected = {}
    for version in VERSIONS:
        found = Classifier.open(f"zoo:{version}", store=zoo.root, threads=1).classify(
            photos, top_k=len(LABELS)
        )
        expected[version] = [
            {one.label: one.probability for one in answer.predictions} for answer in found
        ]
    hammer = Hammer(running.url, photos)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(hammer.client, first) for first in range(CLIENTS)]
        try:
            hammer.wait_for(1, alone=20)
            for move in (2, 3, "rollback", 1, 3, "rollback", "rollback"):
                wanted = (
                    zoo.rollback("zoo") if move == "rollback" else zoo.promote("zoo", int(move))
                )
                hammer.wait_for(wanted.version, alone=40)
        finally:
            hammer.stop()
        for one in asking:
            one.result()
    assert Counter(status for _, status, _ in hammer.answers) == {200: len(hammer.answers)}
    by_version = Counter(body["model"]["version"] for _, _, body in hammer.answers)
    assert set(by_version) == set(VERSIONS)
    for number, _, body in hammer.answers:
        assert probabilities(body) == pytest.approx(
            expected[body["model"]["version"]][number], abs=ROUNDING
        )
    record_property("answers", dict(by_version))
    print(f"answers by version: {dict(by_version)}")  # noqa: T201 - the measurement, shown by `pytest -rP`


def test_a_corrupted_version_that_is_promoted_changes_nothing(
    running: Server, zoo: Store, photo: bytes
):
    """The alias is moved by hand, because `loupe models promote` would refuse it."""
    aliases = zoo.root / "zoo" / "aliases.json"
    meant = json.loads(aliases.read_text(encoding="utf-8"))
    temporary = aliases.with_name("new.json")
    temporary.write_text(json.dumps({**meant, "production": BROKEN}), encoding="utf-8")
    temporary.replace(aliases)
    with httpx.Client(base_url=running.url, timeout=ANSWER_PATIENCE_S, trust_env=False) as client:
        started = time.monotonic()
        while value(scrape(client), "loupe_model_load_failures_total", model="zoo") < 2:
            assert time.monotonic() - started < PATIENCE_S
            time.sleep(POLL_S)
        for _ in range(10):
            body = client.post("/v1/classify", content=photo).json()
            assert body["model"]["version"] == meant["production"]
        assert client.get("/readyz").status_code == 200
    assert running.log.count(f"ERROR zoo:{BROKEN} was refused and changes nothing: ") == 2


def test_what_the_workers_saw_beside_the_answers_adds_up(running: Server):
    """Shadow and drift, of both workers: after the load of the first test."""
    with httpx.Client(base_url=running.url, timeout=ANSWER_PATIENCE_S, trust_env=False) as client:
        series = scrape(client)
    compared = [
        value(series, "loupe_shadow_total", model="zoo", agree=agree) for agree in ("yes", "no")
    ]
    assert sum(compared) > 0
    assert value(series, "loupe_drift_images", model="zoo") >= 0
    assert value(series, "loupe_model_swaps_total", model="zoo") >= 2 * 7


@pytest.mark.slow
def test_gauges_of_a_worker_that_died_are_forgotten_and_its_counts_are_not(
    tmp_path: Path, store: Path, photo: bytes
):
    with serving(tmp_path, store=store, workers=2) as server:
        with httpx.Client(
            base_url=server.url, timeout=ANSWER_PATIENCE_S, trust_env=False
        ) as client:
            for _ in range(4):
                assert client.post("/v1/classify", content=photo).status_code == 200
            before = value(scrape(client), "loupe_requests_total", route="/v1/classify", code="200")
        killed = server.workers()[0]
        killed.kill()
        killed.wait(PATIENCE_S)
        server.wait_ready(3)
        with httpx.Client(
            base_url=server.url, timeout=ANSWER_PATIENCE_S, trust_env=False
        ) as client:
            series = scrape(client)
        assert (
            value(series, "loupe_requests_total", route="/v1/classify", code="200") == before == 4
        )
        files = [path.name for path in (tmp_path / "tmp").rglob("gauge_livemax_*.db")]
        assert sorted(files) == ["gauge_livemax_0.db", "gauge_livemax_1.db"]
        assert [number for (name, _), number in series.items() if name == "loupe_model_info"] == [
            1.0
        ]

"""`/metrics` over real sockets: what two workers counted adds up to what was sent, whichever of
them is asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.engine.classifier import Classifier
from service.http.app import ROUTES
from tests.http.conftest import LABELS, WORKERS, make_photo
from tests.http.server import ANSWER_PATIENCE_S, Server

Series = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(client: httpx.Client) -> Series:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, tuple(sorted(labels.items()))), 0.0)


def grown(before: Series, after: Series, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


def test_the_workers_counts_add_up_to_the_requests_sent(
    server: Server, client: httpx.Client, classifier: Classifier
):
    """Connections are opened until every worker holds some, so that all of them count."""
    photos = [make_photo(seed) for seed in range(24)]
    before = scrape(client)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(
                httpx.Client(base_url=server.url, timeout=ANSWER_PATIENCE_S, trust_env=False)
            )
            for _ in photos
        ]
        # The first answer on each connection; it is kept open.
        for connection in connections:
            assert connection.get("/v1/models").status_code == 200
        held = [
            len([one for one in worker.net_connections("tcp4") if one.status == "ESTABLISHED"])
            for worker in server.workers()
        ]
        assert len(held) == WORKERS
        assert min(held) > 0, f"a worker holds no connection: {held}"
        for connection, photo in zip(connections, photos, strict=True):
            assert connection.post("/v1/classify", content=photo).status_code == 200
        for connection in connections[:5]:
            assert connection.post("/v1/classify", content=b"").status_code == 400
            assert connection.get("/nothing").status_code == 404
            assert connection.request("PROPFIND", "/v1/models").status_code == 405
        # Whichever worker is asked, it answers for both. Each scrape counts itself only after it.
        scrapes = [scrape(connection) for connection in connections]
    for number, after in enumerate(scrapes):
        assert (
            grown(before, after, "loupe_requests_total", route="/metrics", code="200") == number + 1
        )
    for after in (scrapes[0], scrapes[-1]):
        assert grown(before, after, "loupe_requests_total", route="/v1/classify", code="200") == 24
        assert grown(before, after, "loupe_requests_total", route="/v1/classify", code="400") == 5
        assert grown(before, after, "loupe_requests_total", route="/v1/models", code="200") == 24
        assert grown(before, after, "loupe_requests_total", route="other", code="404") == 5
        assert grown(before, after, "loupe_requests_total", route="other", code="405") == 5
        assert (
            grown(before, after, "loupe_request_duration_seconds_count", route="/v1/classify") == 29
        )
        assert grown(before, after, "loupe_rejected_total", reason="empty_body") == 5
        assert grown(before, after, "loupe_rejected_total", reason="unknown_route") == 5
        assert grown(before, after, "loupe_rejected_total", reason="method_not_allowed") == 5
        assert grown(before, after, "loupe_stage_duration_seconds_count", stage="read") == 29
        assert grown(before, after, "loupe_stage_duration_seconds_count", stage="decode") == 24
        assert grown(before, after, "loupe_stage_duration_seconds_count", stage="queue") == 24
        assert grown(before, after, "loupe_batch_size_sum") == 24
        assert 1 <= grown(before, after, "loupe_batch_size_count") <= 24
        assert grown(before, after, "loupe_confidence_count", model="zoo", version="1") == 24
        assert value(after, "loupe_queue_depth") == 0
    likeliest = [classifier.classify([photo], top_k=1)[0].predictions[0] for photo in photos]
    for label in LABELS:
        expected = sum(prediction.label == label for prediction in likeliest)
        assert (
            grown(
                before, scrapes[0], "loupe_predictions_total", model="zoo", version="1", label=label
            )
            == expected
        )
    sums = grown(before, scrapes[0], "loupe_confidence_sum", model="zoo", version="1")
    assert sums == pytest.approx(sum(prediction.probability for prediction in likeliest), abs=1e-4)


def test_the_model_that_is_served_is_named_once_for_all_workers(client: httpx.Client):
    series = scrape(client)
    assert {
        labels: number for (name, labels), number in series.items() if name == "loupe_model_info"
    } == {(("name", "zoo"), ("precision", "fp32"), ("provider", "cpu"), ("version", "1")): 1.0}


def test_labels_come_from_closed_sets(client: httpx.Client):
    """Nothing that a client invents becomes a label: it would cost memory forever."""
    client.get("/invented-path")
    client.post(
        "/v1/classify?model=invented-model",
        content=b"x",
        headers={"x-request-id": "invented-id", "content-type": "invented/type"},
    )
    client.get("/v1/models/invented-name")
    client.request("INVENTED"[:4], "/v1/models")
    text = client.get("/metrics").text
    assert "invented" not in text
    routes = {
        dict(labels)["route"] for (name, labels) in scrape(client) if name == "loupe_requests_total"
    }
    assert routes <= {*(path for path, _, _ in ROUTES), "other", "connection"}


def test_every_metric_is_ours(client: httpx.Client):
    names = {name for name, _ in scrape(client)}
    assert len(names) > 10
    assert {name for name in names if not name.startswith("loupe_")} == set()


def test_a_request_takes_no_longer_than_the_client_waited(client: httpx.Client, photo: bytes):
    before = scrape(client)
    started = time.monotonic()
    client.post("/v1/classify", content=photo)
    waited_s = time.monotonic() - started
    after = scrape(client)
    assert (
        0.0
        < grown(before, after, "loupe_request_duration_seconds_sum", route="/v1/classify")
        <= waited_s
    )

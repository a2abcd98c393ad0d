"""Tracing, against a collector that decodes what it is sent: one trace a request, a span for each
stage, two workers.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.http.server import ANSWER_PATIENCE_S, serving

pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="the extra `tracing` is not installed",
)
STAGES = ("read", "decode", "queue", "inference", "respond")


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver on loopback that keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list = []
        self.services: set[str] = set()
        self.paths: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest.FromString(
            gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        )
        assert isinstance(self.server, Collector)
        self.server.paths.add(self.path)
        for resource in request.resource_spans:
            self.server.services |= {
                one.value.string_value
                for one in resource.resource.attributes
                if one.key == "service.name"
            }
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.shutdown()
        thread.join(ANSWER_PATIENCE_S)
        collector.server_close()


def attributes(span) -> dict[str, object]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_request_is_one_trace_with_a_span_for_each_stage(
    tmp_path: Path, store: Path, photo: bytes
):
    given = "0af7651916cd43dd8448eb211c80319c"
    with collecting() as collector:
        with serving(tmp_path, store=store, workers=2, tracing=collector.url) as server:
            with httpx.Client(
                base_url=server.url, timeout=ANSWER_PATIENCE_S, trust_env=False
            ) as client:
                joined = client.post(
                    "/v1/classify",
                    content=photo,
                    headers={"traceparent": f"00-{given}-b7ad6b7169203331-01"},
                )
                own = client.post("/v1/classify", content=photo, headers={"x-request-id": "mine"})
                refused = client.post("/v1/classify", content=b"text")
                unsampled = client.post(
                    "/v1/classify",
                    content=photo,
                    headers={"traceparent": f"00-{'1' * 32}-b7ad6b7169203331-00"},
                )
                invented = client.get("/invented")
                assert client.get("/metrics").status_code == 200
            assert server.stop() == 0
        assert "Traceback" not in server.log
    assert collector.paths == {"/v1/traces"}
    assert collector.services == {"loupe"}
    assert joined.headers["x-trace-id"] == given
    assert "x-trace-id" not in unsampled.headers
    traces: dict[str, list] = {}
    for span in collector.spans:
        traces.setdefault(span.trace_id.hex(), []).append(span)
    assert traces.keys() == {
        response.headers["x-trace-id"] for response in (joined, own, refused, invented)
    }
    for response in (joined, own):
        (root,) = [
            span
            for span in traces[response.headers["x-trace-id"]]
            if span.kind == span.SPAN_KIND_SERVER
        ]
        stages = {
            span.name: span for span in traces[response.headers["x-trace-id"]] if span is not root
        }
        assert sorted(stages) == sorted(STAGES)
        assert {span.parent_span_id for span in stages.values()} == {root.span_id}
        assert root.name == "POST /v1/classify"
        # Made of durations, the spans may end a little after what they are made of; a millisecond
        # is far above that.
        assert all(
            span.start_time_unix_nano >= root.start_time_unix_nano - 10**6
            for span in stages.values()
        )
        assert all(
            span.end_time_unix_nano <= root.end_time_unix_nano + 10**6 for span in stages.values()
        )
        in_order = [stages[name].start_time_unix_nano for name in STAGES]
        assert in_order == sorted(in_order)
        assert attributes(stages["inference"]) == {
            "loupe.model": "zoo",
            "loupe.version": 1,
            "loupe.batch_size": 1,
        }
        assert attributes(root)["http.response.status_code"] == 200
        assert attributes(root)["http.route"] == "/v1/classify"
        took_ms = response.json()["timing_ms"]
        span = stages["decode"]
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 == pytest.approx(
            took_ms["decode"], abs=0.01
        )
    (root,) = [
        span for span in traces[own.headers["x-trace-id"]] if span.kind == span.SPAN_KIND_SERVER
    ]
    assert attributes(root)["loupe.request_id"] == "mine"
    assert root.parent_span_id == b""
    (root,) = [span for span in traces[given] if span.kind == span.SPAN_KIND_SERVER]
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert not any("invented" in span.name for span in collector.spans)


@pytest.mark.slow
def test_a_collector_that_is_away_costs_no_request_and_no_traceback(
    tmp_path: Path, store: Path, photo: bytes
):
    with serving(tmp_path, store=store, tracing="http://127.0.0.1:9") as server:
        for _ in range(3):
            assert (
                httpx.post(
                    f"{server.url}/v1/classify",
                    content=photo,
                    timeout=ANSWER_PATIENCE_S,
                    trust_env=False,
                ).status_code
                == 200
            )
        assert server.stop() == 0
    assert "Traceback" not in server.log

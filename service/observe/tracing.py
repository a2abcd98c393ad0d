"""Traces: each request sends a span for every stage to a collector, by OTLP over HTTP.

    POST /v1/classify  =  read + decode + queue + inference + respond

Spans are made afterwards from the durations of the metrics: tracing adds no clock to the hot path.
BentoML's own tracing stays off, because it makes a span for each message of a body. Import this
module only where tracing is on: OpenTelemetry is optional, and slow to import.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.classifier import Classifier
from service.engine.tickets import Timing

TRACE_HEADER = "X-Trace-Id"
EXPORT_TIMEOUT_S = 3.0
"""Longest wait for a collector, at the end of the process too."""
UNTRACED = ("/metrics",)
"""Prometheus asks for it every few seconds."""


class Tracing:
    """Sends spans to *collector*, for a *share* of the requests.

    A request with a W3C `traceparent` header decides for itself.
    """

    def __init__(self, collector: str, *, share: float) -> None:
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(share),
            resource=Resource.create({"service.name": "loupe"}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=traces_address(collector), timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("loupe")

    def around(self, app: ASGIApp) -> ASGIApp:
        """*app*, with a span around each request.

        Not Starlette's `BaseHTTPMiddleware`, which runs the application in another task.
        """

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] not in UNTRACED:
                await self._handle(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return traced

    def stage(
        self,
        name: str,
        *,
        seconds: float,
        ended: float,
        about: tuple[Classifier, Timing] | None = None,
    ) -> None:
        """A span of *seconds* for stage *name* of the current request, until *ended*.

        *ended* is on the clock of `time.time`. The span's attributes say what it is *about*.
        """
        if get_current_span().is_recording():
            attributes: dict[str, str | int] | None = about and {
                "loupe.model": about[0].name,
                "loupe.version": about[0].version,
                "loupe.batch_size": about[1].batch_size,
            }
            span = self._tracer.start_span(
                name, start_time=round((ended - seconds) * 1e9), attributes=attributes
            )
            span.end(round(ended * 1e9))

    def close(self) -> None:
        """Send the remaining spans, and accept no more."""
        self._provider.shutdown()

    async def _handle(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let *app* answer a request within a span."""
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        parent = TraceContextTextMapPropagator().extract(carrier)
        with self._tracer.start_as_current_span(
            scope["method"], context=parent, kind=SpanKind.SERVER
        ) as span:
            trace_id = (
                format_trace_id(span.get_span_context().trace_id) if span.is_recording() else ""
            )

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                    for name, value in message["headers"]:
                        if name.lower() == b"x-request-id":
                            span.set_attribute("loupe.request_id", value.decode("latin-1"))
                    if trace_id:
                        message["headers"] = [
                            *message["headers"],
                            (TRACE_HEADER.lower().encode(), trace_id.encode()),
                        ]
                await send(message)

            try:
                await app(scope, receive, send_traced)
            finally:
                # The template and not the path: clients must not invent names of spans.
                route = scope.get("loupe.route", "")
                span.update_name(f"{scope['method']} {route}".strip())
                span.set_attributes({"http.request.method": scope["method"], "http.route": route})


def traces_address(collector: str) -> str:
    """The address for spans: *collector* if it has a path, otherwise OTLP's path below it."""
    return (
        collector if urlsplit(collector).path.strip("/") else f"{collector.rstrip('/')}/v1/traces"
    )

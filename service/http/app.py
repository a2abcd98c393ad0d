"""The HTTP interface, as one Starlette application. Thin: it reads requests, asks the pipeline, and writes answers."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from service.gate.admission import admission, open_gate
from service.http.classify import classify
from service.http.direct import Application, Direct
from service.http.handling import Endpoint, http_exception, refuse_everything_else, route
from service.http.models import list_models, show_model
from service.http.site import show_docs, show_docs_file, show_docs_slash, show_metrics, show_openapi, show_playground
from service.protocols.bentoml_client import classify_natively, show_schema
from service.protocols.inference_protocol import infer, live, model_metadata, model_ready, ready, repository_index, server_metadata
from service.protocols.torchserve import ping, predict
from service.rollout.worker import Worker

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    # The hot path first: routes are tried in order.
    ("/v1/classify", "POST", classify),
    ("/v2/models/{name}/infer", "POST", infer),
    ("/v2/models/{name}/versions/{version}/infer", "POST", infer),
    ("/predictions/{name}", "POST PUT", predict),
    ("/predictions/{name}/{version}", "POST PUT", predict),
    ("/classify", "POST", classify_natively),
    ("/v1/models", "GET", list_models),
    ("/v1/models/{name}", "GET", show_model),
    ("/v2", "GET", server_metadata),
    ("/v2/health/live", "GET", live),
    ("/v2/health/ready", "GET", ready),
    ("/v2/models/{name}", "GET", model_metadata),
    ("/v2/models/{name}/versions/{version}", "GET", model_metadata),
    ("/v2/models/{name}/ready", "GET", model_ready),
    ("/v2/models/{name}/versions/{version}/ready", "GET", model_ready),
    ("/v2/repository/index", "POST", repository_index),
    ("/ping", "GET", ping),
    ("/metrics", "GET", show_metrics),
    ("/schema.json", "GET", show_schema),
    ("/openapi.json", "GET", show_openapi),
    ("/docs", "GET", show_docs),
    ("/docs/", "GET", show_docs_slash),
    ("/docs/{file}", "GET", show_docs_file),
    ("/", "GET", show_playground),
)
"""Path, methods, endpoint."""


def create_app(worker: Worker, *, lifespan: Lifespan[Starlette] | None = None, ending: Callable[[], bool] = lambda: False) -> Starlette:
    """The application that answers for *worker*, behind its admission. *ending* says whether the process was asked to end."""
    routes = [route(path, endpoint, worker, methods=methods.split()) for path, methods, endpoint in ROUTES]
    gate = open_gate(worker.settings, ending=ending)
    return Application(
        direct=Direct(worker, gate, log_sample=worker.settings.log_sample),
        routes=[*routes, refuse_everything_else(worker)],
        lifespan=lifespan,
        middleware=admission(worker.settings, gate),
        exception_handlers={HTTPException: http_exception},
    )

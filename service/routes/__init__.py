"""The HTTP interface, as one Starlette application. Thin: it reads requests, asks the pipeline, and writes answers."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from service.admission import admission
from service.routes.classify import classify
from service.routes.handling import http_exception, refuse_everything_else, route
from service.routes.models import list_models, show_model
from service.routes.site import show_metrics, show_playground
from service.worker import Worker


def create_app(worker: Worker, *, lifespan: Lifespan[Starlette] | None = None, ending: Callable[[], bool] = lambda: False) -> Starlette:
    """The application that answers for *worker*, behind its admission. *ending* says whether the process was asked to end."""
    routes = [
        route("/v1/classify", classify, worker, methods=["POST"]),
        route("/v1/models", list_models, worker, methods=["GET"]),
        route("/v1/models/{name}", show_model, worker, methods=["GET"]),
        route("/metrics", show_metrics, worker, methods=["GET"]),
        route("/", show_playground, worker, methods=["GET"]),
        refuse_everything_else(worker),
    ]
    middleware = admission(worker.settings, ending=ending)
    return Starlette(routes=routes, lifespan=lifespan, middleware=middleware, exception_handlers={HTTPException: http_exception})

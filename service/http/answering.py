"""Images in, JSON out: what the answer routes share. One image's failure stays its own."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus

import numpy as np
from starlette.requests import Request

from models.errors import DeadlineExceeded, LoupeError
from service.engine.classifier import Classification, Classifier
from service.engine.explain import heatmap, overlay_png
from service.engine.pipeline import Pipeline, Result
from service.engine.tickets import Timing
from service.gate.admission import HELD_SCOPE_KEY
from service.http.body.fetching import Fetcher
from service.http.body.images import Source, Url
from service.http.options import Options
from service.problems import describe

log = logging.getLogger("loupe")

Fetch = Callable[[str], Awaitable[bytes]]
"""Gives the bytes at a URL. Raises `LoupeError`."""

HEAT_DECIMALS = 4
_PAINTERS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="overlay")
"""One thread: overlays are for eyes, and must not take the decoders' time."""


def fetching_for(request: Request, fetcher: Fetcher, *, deadline: float) -> Fetch:
    """How the images of *request* that lie elsewhere are fetched: until *deadline*, and counted as
    its body is.
    """
    return partial(fetcher.fetch, deadline=deadline, hold=request.scope[HELD_SCOPE_KEY].hold)


async def answer_one(
    pipeline: Pipeline,
    source: Source,
    options: Options,
    *,
    fetch: Fetch,
    deadline: float,
    client: str,
    bulk: bool = False,
) -> tuple[dict[str, object], Timing]:
    """The answer for one image of *client* as JSON values, and where its time went; *bulk* lets
    others pass. Raises `LoupeError`.
    """
    encoded = await _encoded(source, fetch)
    result = await pipeline.classify(
        encoded,
        top_k=options.top_k,
        deadline=deadline,
        outputs=options.outputs,
        client=client,
        bulk=bulk,
    )
    if not options.outputs and not options.threshold:
        return classification_body(result.classification), result.timing
    body = classification_body(_above(result.classification, options.threshold))
    if options.explain:
        body["explanation"] = await _explanation(
            pipeline.classifier, encoded, result, options, deadline=deadline
        )
    if options.embedding:
        body["embedding"] = result.outputs["embedding"].tolist()
    return body, result.timing


async def answer_each(
    pipeline: Pipeline,
    sources: Sequence[Source],
    options: Options,
    *,
    fetch: Fetch,
    places: int,
    deadline: float,
    client: str,
    request_id: str,
) -> list[dict[str, object]]:
    """One body for each image, in order; one that cannot be answered gets `{"error": {...}}`.

    Only *places* are on the way at once, so that one request does not fill the queue that all
    share.
    """
    free = asyncio.Semaphore(places)

    async def answer(source: Source) -> dict[str, object]:
        async with free:
            try:
                body, _ = await answer_one(
                    pipeline,
                    source,
                    options,
                    fetch=fetch,
                    deadline=deadline,
                    client=client,
                    bulk=True,
                )
            except LoupeError as error:
                if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                    log.exception("request %s: %s", request_id, error.code)
                return {"error": describe(error)}
            except Exception:
                log.exception("request %s failed for one of its images", request_id)
                return {"error": describe(LoupeError())}
            return body

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(source)) for source in sources]
    return [task.result() for task in tasks]


def classification_body(classification: Classification) -> dict[str, object]:
    """`predictions` and `abstained`."""
    predictions = [
        {"label": p.label, "index": p.index, "probability": p.probability}
        for p in classification.predictions
    ]
    return {"predictions": predictions, "abstained": classification.abstained}


def timing_ms(timing: Timing, *, read_s: float, total_s: float) -> dict[str, float]:
    """The stages of one image's time, in milliseconds."""
    stages = {
        "read": read_s,
        "decode": timing.decode_s,
        "queue": timing.queue_s,
        "inference": timing.inference_s,
        "total": total_s,
    }
    return {name: round(seconds * 1000.0, 3) for name, seconds in stages.items()}


def model_body(classifier: Classifier) -> dict[str, object]:
    """Name and version."""
    return {"name": classifier.name, "version": classifier.version}


async def _encoded(source: Source, fetch: Fetch) -> bytes:
    if isinstance(source, LoupeError):
        raise source
    return await fetch(source.url) if isinstance(source, Url) else source


def _above(classification: Classification, threshold: float) -> Classification:
    likely = tuple(
        prediction
        for prediction in classification.predictions
        if prediction.probability >= threshold
    )
    return Classification(likely, classification.abstained)


async def _explanation(
    classifier: Classifier, encoded: bytes, result: Result, options: Options, *, deadline: float
) -> dict[str, object]:
    """The heatmap of the class asked for, otherwise of the likeliest."""
    top, parts = int(np.argmax(result.outputs["probabilities"])), str(options.explain).split(",")
    chosen = options.explain_class
    heat = heatmap(result.outputs["cam"], chosen if isinstance(chosen, int) else top)
    body: dict[str, object] = {
        "method": "grad-cam",
        "label": classifier.manifest.labels[heat.index],
        "index": heat.index,
        "peak": heat.peak,
    }
    if "grid" in parts:
        body["grid"] = [[round(float(cell), HEAT_DECIMALS) for cell in row] for row in heat.heat_hw]
    if "overlay" in parts:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                png = await loop.run_in_executor(
                    _PAINTERS, lambda: overlay_png(classifier.decode(encoded), heat.heat_hw)
                )
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the overlay was not painted before the request's deadline", retry_after_s=1.0
            ) from error
        body["overlay_png"] = base64.b64encode(png).decode("ascii")
    return body

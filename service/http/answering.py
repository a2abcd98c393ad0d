"""Images in, JSON out: what the routes that classify share. A bad image fails alone."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import DeadlineExceeded, LoupeError
from models.inspection.heatmap import heatmap, overlay_png
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline, Result
from service.engine.tickets import PIXELS, Timing
from service.gate.admission import HELD_SCOPE_KEY
from service.http.body.images import Source, Url
from service.http.body.reading import unless_client_leaves
from service.http.options import Options
from service.observe.logs import client_of
from service.observe.metrics import METRICS
from service.problems import describe, known_error
from service.rollout.worker import Worker

Fetch = Callable[[str], Awaitable[bytes]]
"""Gives the bytes at a URL. Raises `LoupeError`."""

HEAT_DECIMALS = 4
_PAINTERS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="overlay")
"""One thread: overlays are for people, and must not take the decoders' time."""


async def answer(
    request: Request,
    worker: Worker,
    pipeline: Pipeline,
    sources: Sequence[Source],
    options: Options,
    *,
    request_id: str,
    arrived: float,
    deadline: float,
) -> Response:
    """The answer for *sources*: `predictions` for one image, `results` for several.

    *request* is read. It *arrived* by `time.monotonic`.
    """
    read_s = time.monotonic() - arrived
    METRICS.stage("read", read_s)
    hold = request.scope[HELD_SCOPE_KEY].hold
    answer_image = partial(
        answer_one,
        pipeline,
        options=options,
        fetch=partial(worker.fetcher.fetch, deadline=deadline, hold=hold),
        deadline=deadline,
        client=client_of(request.scope),
    )
    stages = {"read": read_s}
    body: dict[str, object] = {
        "model": {"name": pipeline.classifier.name, "version": pipeline.classifier.version}
    }
    if len(sources) == 1:
        found, timing = await unless_client_leaves(request.receive, answer_image(sources[0]))
        stages |= {
            "decode": timing.decode_s,
            "queue": timing.queue_s,
            "inference": timing.inference_s,
        }
        body |= found
    else:
        places = asyncio.Semaphore(worker.settings.places_of_request)
        work = _answer_each(partial(answer_image, bulk=True), sources, places, request_id)
        body["results"] = await unless_client_leaves(request.receive, work)
    answered = time.monotonic()
    stages["total"] = answered - arrived
    times = {name: round(seconds * 1000.0, 3) for name, seconds in stages.items()}
    response = JSONResponse(body | {"request_id": request_id, "timing_ms": times})
    METRICS.stage("respond", time.monotonic() - answered)
    return response


async def answer_one(
    pipeline: Pipeline,
    source: Source,
    *,
    options: Options,
    fetch: Fetch,
    deadline: float,
    client: str,
    bulk: bool = False,
) -> tuple[dict[str, object], Timing]:
    """The answer for one image of *client* as JSON values, and its times. Raises `LoupeError`.

    *bulk* lets other clients pass.
    """
    if isinstance(source, LoupeError):
        raise source
    encoded = await fetch(source.url) if isinstance(source, Url) else source
    result = await pipeline.classify(
        encoded,
        top_k=options.top_k,
        deadline=deadline,
        outputs=options.outputs,
        client=client,
        bulk=bulk,
    )
    body: dict[str, object] = {
        "predictions": [
            {"label": p.label, "index": p.index, "probability": p.probability}
            for p in result.classification.predictions
            if p.probability >= options.threshold
        ],
        "abstained": result.classification.abstained,
    }
    if options.explain:
        body["explanation"] = await _explanation(
            pipeline.classifier, result, options, deadline=deadline
        )
    if options.embedding:
        body["embedding"] = result.outputs["embedding"].tolist()
    return body, result.timing


async def _answer_each(
    answer_image: Callable[[Source], Awaitable[tuple[dict[str, object], Timing]]],
    sources: Sequence[Source],
    places: asyncio.Semaphore,
    request_id: str,
) -> list[dict[str, object]]:
    """One body for each image, in order. An image that fails gets `{"error": {...}}`.

    Images wait for *places*, so that one request does not fill the queue that all share.
    """

    async def attempt(source: Source) -> dict[str, object]:
        async with places:
            try:
                body, _ = await answer_image(source)
            except Exception as error:  # noqa: BLE001 - its neighbours still get their answers
                body = {"error": describe(known_error(error, request_id=request_id))}
            return body

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt(source)) for source in sources]
    return [task.result() for task in tasks]


async def _explanation(
    classifier: Classifier, result: Result, options: Options, *, deadline: float
) -> dict[str, object]:
    """The heat map of the class asked for, otherwise of the likeliest."""
    chosen, parts = options.explain_class, options.explain_parts
    top = int(np.argmax(result.outputs["probabilities"]))
    index = chosen if isinstance(chosen, int) else top
    heat = heatmap(result.outputs[options.map_output], 0)
    body: dict[str, object] = {
        "method": "grad-cam",
        "label": classifier.manifest.labels[index],
        "index": index,
        "peak": heat.peak,
    }
    if "grid" in parts:
        body["grid"] = [[round(float(cell), HEAT_DECIMALS) for cell in row] for row in heat.heat_hw]
    if "overlay" in parts:
        painting = asyncio.get_running_loop().run_in_executor(
            _PAINTERS, overlay_png, result.outputs[PIXELS], heat.heat_hw
        )
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                body["overlay_png"] = base64.b64encode(await painting).decode("ascii")
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the overlay was not painted before the request's deadline", retry_after_s=1.0
            ) from error
    return body

"""FastAPI and ONNX Runtime as experts write it: body on the event loop, work in the thread pool.

The raw body is cheaper than a form. One thread for each run leaves the cores to the two workers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.serving.peers.pipeline import answer, open_session, probabilities, to_pixels

app = FastAPI()
session = open_session(threads=1)


@app.post("/classify")
async def classify(request: Request) -> Any:
    """The likeliest classes of the photo in the body."""
    return await run_in_threadpool(_classify, await request.body())


def _classify(encoded: bytes) -> dict[str, Any]:
    return answer(probabilities(session, to_pixels(encoded)[np.newaxis])[0])

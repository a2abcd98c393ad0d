"""BentoML's usual pattern: a service that decodes, and `bentoml.depends` on one that batches."""

from __future__ import annotations

import asyncio
from typing import Any

import bentoml
import numpy as np
from PIL import Image

from benchmarks.serving.peers.pipeline import answer, fit, open_session, probabilities

QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=1, logging=QUIET)
class Network:
    """The model."""

    def __init__(self) -> None:
        self.session = open_session(threads=1)

    @bentoml.api(batchable=True, max_batch_size=16)
    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities of a batch."""
        return probabilities(self.session, pixels)


@bentoml.service(workers=2, logging=QUIET)
class Classifier:
    """The service that clients call."""

    network = bentoml.depends(Network)

    @bentoml.api
    async def classify(self, image: Image.Image) -> dict[str, Any]:
        """The likeliest classes of *image*."""
        pixels_HWC = await asyncio.to_thread(fit, image)
        [probabilities_K] = await self.network.to_async.predict(pixels_HWC[np.newaxis])
        return answer(probabilities_K)

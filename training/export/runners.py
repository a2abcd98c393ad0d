"""Networks that are not yet a package, as `predict` runs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.networks.network import ServedGraph
from models.runtime.session import open_session
from training.data.predict import Outputs, Runner


def onnx_runner(encoded: bytes, *, origin: str) -> Runner:
    """The ONNX model *encoded* on one thread of the CPU; errors name its *origin*."""
    session = open_session(encoded, threads=1, provider="cpu", origin=origin)

    def run(pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        values = session.run(list(outputs), {"image": pixels_NHWC})
        return dict(zip(outputs, values, strict=True))

    return run


def torch_runner(graph: ServedGraph) -> Runner:
    """*graph* itself, in torch."""

    def run(pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        with torch.inference_mode():
            values = dict(zip(graph.outputs, graph(torch.from_numpy(pixels_NHWC)), strict=True))
        return {name: values[name].numpy() for name in outputs}

    return run

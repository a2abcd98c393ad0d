"""How long each layer of a package takes on this machine, by ONNX Runtime's profiler."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort

from models.inspection.layers import Layer
from models.runtime.answer_graph import ANSWER, ancestors, keep
from models.runtime.weights import INSIDE, Weights, share_weights

RUNS, WARM_UPS = 9, 2
"""The median of so many runs counts. The first ones warm up."""
FEW_RUNS, LONG_S = 3, 0.3
"""Of a network for which more would take longer than this, so many runs count."""
_ADDED = re.compile(r"^fused |(_nchwc|_token_\d+|_quant)+$")
"""What ONNX Runtime adds to the name of an operation that it replaces."""


def measured_layers(
    encoded: bytes, layers: Sequence[Layer], *, threads: int = 1, weights: Weights = INSIDE
) -> list[Layer]:
    """*layers* of the ONNX model *encoded* with their milliseconds for one image.

    *weights* lie beside the graph.

    ONNX Runtime runs a convolution and what follows it as one operation. Its time stands at the
    convolution, and the layers that were run with it have None.
    """
    by_value = _profile(encoded, threads=threads, weights=weights)
    by_name = {layer.name: layer for layer in layers}
    found: dict[str, float] = defaultdict(float)
    for layer in layers:
        if layer.output in by_value:
            found[_heaviest(layer, by_name, by_value).name] += by_value[layer.output]
    return [replace(layer, measured_ms=found.get(layer.name)) for layer in layers]


def _heaviest(layer: Layer, by_name: Mapping[str, Layer], timed: Mapping[str, float]) -> Layer:
    """The convolution or linear layer that *layer* was fused with, or *layer*."""
    step = layer
    while not step.multiply_adds and step.inputs and step.inputs[0] in by_name:
        step = by_name[step.inputs[0]]
        if step.output in timed:
            return layer
    return step if step.multiply_adds else layer


def _profile(encoded: bytes, *, threads: int, weights: Weights) -> dict[str, float]:
    """Milliseconds by the value that an operation makes."""
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    keep(model.graph, ancestors(model.graph, [ANSWER]))
    for node in model.graph.node:
        # The profiler tells names of operations: a value's name leads back to the layer.
        node.name = node.output[0]
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    share_weights(options, model, weights)
    with tempfile.TemporaryDirectory(prefix="loupe-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        image = session.get_inputs()[0]
        dtype = np.uint8 if "uint8" in image.type else np.float32
        shape = [size if isinstance(size, int) else 1 for size in image.shape]
        began, runs = time.perf_counter(), 0
        while runs < FEW_RUNS or (runs < RUNS and time.perf_counter() - began < LONG_S):
            for _ in range(1 if runs else 1 + WARM_UPS):
                session.run(None, {image.name: np.zeros(shape, dtype)})
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            value = _ADDED.sub("", event["name"].removesuffix("_kernel_time"))
            times[value].append(event["dur"] / 1000.0)
    return {value: median(each[WARM_UPS:]) for value, each in times.items()}

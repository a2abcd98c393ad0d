"""Values inside a network for given images: the feature maps of any layer of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.errors import PackageError
from models.runtime.answer_graph import keep_ancestors


def session_with_outputs(
    encoded: bytes, names: Sequence[str], *, threads: int = 0
) -> ort.InferenceSession:
    """A session of the ONNX model *encoded* whose outputs are the values *names*.

    What these values do not need is cut away, so that an early layer costs little. Raises
    `PackageError` if the graph does not load.
    """
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    del model.graph.output[:]
    # ONNX Runtime finds the types by itself.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    keep_ancestors(model.graph, names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise PackageError(
            f"the graph does not load with outputs {', '.join(names)}: {error}"
        ) from error


def feature_maps(
    session: ort.InferenceSession, pixels_NHWC: NDArray[np.uint8]
) -> list[NDArray[np.float32]]:
    """The outputs of *session* for *pixels_NHWC*, in its order."""
    return list(session.run(None, {session.get_inputs()[0].name: pixels_NHWC}))

"""A graph that was exported for one image, made to take any number.

Exporters write the batch into the target shapes of Reshape and Expand. Where it stands first there,
it is replaced; whether the answers are then right for every batch is for the proof to say.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto

from training.importing.onnx_graph import constants, makers, nodes_of

SAME, INFERRED = 0, -1
"""In a Reshape's target: the input's size at that place, and whatever is left."""


def with_free_batch(model: ModelProto, *, batch: int | None) -> ModelProto:
    """A copy of *model*, made for *batch* images, that takes any number. None: it does already."""
    freed = ModelProto()
    freed.CopyFrom(model)
    graph = freed.graph
    # Sizes that were inferred for the old batch are wrong now.
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    _free_reshapes(graph, batch or 1)
    return freed


def _free_reshapes(graph: GraphProto, batch: int) -> None:
    """Give every Reshape whose target begins with *batch* a target of its own without it.

    Also where the declared batch is free: exporters write the example's batch of 1 into Reshape.
    """
    values, made = constants(graph), makers(graph)
    for index, node in enumerate(nodes_of(graph)):
        if node.op_type != "Reshape" or node.input[1] not in values:
            continue
        target = [int(size) for size in values[node.input[1]]]
        if len(target) < 2 or target[0] != batch or not _is_per_image(node, made, values):
            continue
        target[0] = SAME if INFERRED in target else INFERRED
        if SAME in target[1:] and target[0] == INFERRED:
            target[0] = SAME
        name = f"loupe/shape_{index}"
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(target, dtype=np.int64), name)
        )
        node.input[1] = name


def _is_per_image(
    node: NodeProto,
    made: dict[str, NodeProto],
    values: dict[str, np.typing.NDArray[np.generic]],
) -> bool:
    """Whether *node* shapes something that comes from the image, and no weight."""
    return node.input[0] not in values and (node.input[0] in made or bool(node.input[0]))

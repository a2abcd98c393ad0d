"""The class-activation map of one class of each image, instead of the maps of all classes.

For 1000 classes the maps of all cost as much as MobileNetV3-small itself. The last step of a map is
a 1x1 convolution with a row of weights for each class; here it takes one row for each image.

Letters used in shapes: N images, K classes, J features, h and w cells of a map.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.runtime.answer_graph import ancestors, keep

if TYPE_CHECKING:  # imported where it is used
    from onnx import GraphProto, ModelProto, NodeProto

MAPS = "cam"
"""The graph's output with the maps of all classes, [N,K,h,w]."""
CLASSES = "classes"
"""Input of the rewritten graph: the class of each image, int64 [N]."""
LIKELIEST = "likeliest"
_NAME = re.compile(rf"{MAPS}\[(\d+|{LIKELIEST})\]")
_SCALED = frozenset({"Div", "Mul", "Cast", "Identity"})


def map_of(index: int | None) -> str:
    """The name of the output [N,1,h,w] for class *index*; None: of each image's likeliest class."""
    return f"{MAPS}[{LIKELIEST if index is None else index}]"


def whole_name(output: str) -> str:
    """The graph's output that *output* is, or is a part of."""
    return MAPS if _NAME.fullmatch(output) else output


def classes_of(output: str, probabilities_NK: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """The class of each image whose map *output* names, [N]; None if it names no such map."""
    found = _NAME.fullmatch(output)
    if found is None:
        return None
    if found[1] == LIKELIEST:
        return np.asarray(probabilities_NK.argmax(axis=1), np.int64)
    return np.full(len(probabilities_NK), int(found[1]), np.int64)


def rows_of(maps_NKhw: NDArray[np.float32], classes_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """The map of each image's class, [N,1,h,w]."""
    return maps_NKhw[np.arange(len(maps_NKhw)), classes_N][:, np.newaxis]


def for_classes(rest: ModelProto) -> ModelProto | None:
    """A copy of *rest* with the input `classes` and the one output `cam`, [N,1,h,w].

    A map is a chain of linear steps on the feature map. So the row of the class is carried back
    through the chain, [N,J,1,1], and meets the feature map at the end: the chain is never computed
    at each cell. None if the last step is not a 1x1 convolution.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(rest)
    graph = model.graph
    last = _last_convolution(graph)
    if last is None:
        return None
    made = last.output[0]
    chain = _Chain(graph, made)
    chain.take("Gather", last.input[1], CLASSES, axis=0)
    features = chain.back(last.input[0])
    chain.take("Mul", features, chain.row)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), f"{made}/axis"))
    chain.take("ReduceSum", chain.row, f"{made}/axis", keepdims=1)
    chain.nodes[-1].output[0] = made
    place = list(graph.node).index(last)
    del graph.node[place]
    for offset, node in enumerate(chain.nodes):
        graph.node.insert(place + offset, node)
    graph.input.append(onnx.helper.make_tensor_value_info(CLASSES, onnx.TensorProto.INT64, ["N"]))
    _keep_only_maps(graph)
    return model


class _Chain:
    """New nodes that carry a class's row of weights back to the feature map."""

    def __init__(self, graph: GraphProto, name: str) -> None:
        self._maker = _makers(graph)
        self._name = name
        self.nodes: list[NodeProto] = []

    @property
    def row(self) -> str:
        """The value so far."""
        return str(self.nodes[-1].output[0])

    def take(self, kind: str, *inputs: str, **attributes: Any) -> None:  # Any: ONNX's own
        """Add a node of *kind*."""
        import onnx

        output = f"{self._name}/{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))

    def back(self, name: str) -> str:
        """The value that the chain up to *name* begins with; the row is carried back to it."""
        while (node := self._maker.get(name)) is not None:
            if node.op_type == "Conv" and len(node.input) == 2 and _is_pointwise(node):
                # The convolution turned round, with the same weights.
                self.take("ConvTranspose", self.row, node.input[1])
            elif node.op_type in ("Mul", "Div") and self._is_a_vector(node.input[1]):
                self.take(node.op_type, self.row, node.input[1])
            else:
                break
            name = node.input[0]
        return name

    def _is_a_vector(self, name: str) -> bool:
        """Whether *name* has one value for each feature, [N,J,1,1]."""
        return name in self._maker and self._maker[name].op_type == "Unsqueeze"


def _makers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _last_convolution(graph: GraphProto) -> NodeProto | None:
    """The 1x1 convolution that makes the maps, up to a constant factor."""
    maker = _makers(graph)
    varying = {value.name for value in graph.input}
    for node in graph.node:
        if varying.intersection(node.input):
            varying.update(node.output)
    name = MAPS
    while name in maker and maker[name].op_type in _SCALED:
        depends = [one for one in maker[name].input if one in varying]
        if len(depends) != 1:
            return None
        name = depends[0]
    node = maker.get(name)
    if node is None or node.op_type != "Conv" or len(node.input) != 2 or node.input[1] in varying:
        return None
    return node if _is_pointwise(node) else None


def _is_pointwise(node: NodeProto) -> bool:
    """Whether *node* is a plain 1x1 convolution."""
    import onnx

    told = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    plain = told.get("group", 1) == 1 and not any(told.get("pads", ()))
    sizes = [*told.get("kernel_shape", (0,)), *told.get("strides", ())]
    return plain and set(sizes) == {1}


def _keep_only_maps(graph: GraphProto) -> None:
    """Remove all that `cam` does not need."""
    import onnx

    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=MAPS))
    needed = ancestors(graph, [MAPS])
    keep(graph, needed)
    for index in range(len(graph.input) - 1, -1, -1):
        if graph.input[index].name not in needed:
            del graph.input[index]

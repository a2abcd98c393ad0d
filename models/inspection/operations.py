"""The operations of a network as a list, read from an ONNX graph.

`models.networks.torch_operations` makes the same list of a network in torch. Operations have ONNX's
names: `Conv`, `MaxPool`, `Gemm`, `Add`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from models.errors import PackageError
from models.inspection.feature_maps import session_with_outputs
from models.runtime.weights import INSIDE, LARGE, Weights

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

PASSED_THROUGH = frozenset({"Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear"})
"""Operations that change how values are stored and not what they are. They are left out."""
SMALL = LARGE
"""Constants of up to so many elements are kept for shape inference: only small ones hold shapes."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a network on one image."""

    kind: str
    """ONNX's name of it."""
    name: str
    """The module in the network, such as `features.0.0`, or the name of the output."""
    inputs: tuple[str, ...]
    """Names of the values that depend on the image."""
    output: str
    """Name of the value that it makes."""
    input_shapes: tuple[tuple[int, ...], ...]
    """Of *inputs*, the batch axis (of size 1) included."""
    shape: tuple[int, ...]
    """Of *output*, the batch axis (of size 1) included."""
    weight_shape: tuple[int, ...] = ()
    """Of the largest constant input; empty: there is none."""
    parameters: int = 0
    """Number of values in all constant inputs."""
    bytes_per_value: int = 4
    bytes_per_weight: int = 4
    attributes: Mapping[str, object] = field(default_factory=dict)
    constants: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Position -> values of small constant inputs of whole numbers: axes, shapes, pads."""


def operations_of(
    encoded: bytes, *, image_size: tuple[int, int] | None = None, weights: Weights = INSIDE
) -> list[Operation]:
    """The operations of the ONNX model *encoded*, in the order in which they run.

    *image_size* is height and width of the image, where the graph leaves them open. *weights* lie
    beside the graph. Raises `PackageError` if sizes stay unknown.
    """
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    _fix_sizes(model, image_size)
    constants = _Constants(model)
    _lighten(model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    unknown = [
        name
        for node in model.graph.node
        for name in node.output[:1]
        if not all(shapes.get(name) or (0,))
    ]
    if unknown:
        shapes |= _observed(encoded, shapes[model.graph.input[0].name], unknown, weights=weights)
    return _with_biases(list(_walk(model, constants, shapes)))


def _observed(
    encoded: bytes, image_shape: tuple[int, ...], names: Sequence[str], *, weights: Weights
) -> dict[str, tuple[int, ...]]:
    """The shapes of the values *names* in a run on an image of zeros.

    For what shape inference cannot tell. Raises `PackageError` if the graph does not run.
    """
    session = session_with_outputs(encoded, names, weights=weights)
    image = session.get_inputs()[0]
    dtype = np.uint8 if "uint8" in image.type else np.float32
    if not all(image_shape):
        raise PackageError(
            "the graph leaves the image's height and width open; give them with --input"
        )
    values = session.run(list(names), {image.name: np.zeros(image_shape, dtype)})
    return {name: np.shape(value) for name, value in zip(names, values, strict=True)}


def _walk(
    model: ModelProto, constants: _Constants, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Operation]:
    source: dict[str, str] = {}
    quantised: set[str] = set()
    for node in model.graph.node:
        given = [name for name in node.input if name]
        varying = tuple(source.get(name, name) for name in given if name not in constants)
        if not varying or node.op_type == "Shape":
            constants.add(node)
            continue
        output = node.output[0]
        if node.op_type in PASSED_THROUGH:
            source[output] = varying[0]
            if node.op_type == "DequantizeLinear":
                quantised.add(varying[0])
            continue
        if not shapes.get(output) or not all(shapes[output]):
            raise PackageError(
                f"the shape of {output!r} ({node.op_type}) cannot be found; give the image's size"
                " with --input, or export the graph with fixed sizes"
            )
        weights = [(name, constants.shape(name)) for name in given if name in constants]
        heaviest, largest = max(weights, key=lambda item: prod(item[1]), default=("", ()))
        yield Operation(
            kind=node.op_type,
            name=_module(heaviest, output),
            inputs=varying,
            output=output,
            input_shapes=tuple(shapes[name] for name in varying),
            shape=shapes[output],
            weight_shape=largest,
            parameters=sum(prod(shape) for name, shape in weights if constants.is_weight(name)),
            bytes_per_value=1 if quantised.issuperset(varying) else 4,
            bytes_per_weight=min(
                (constants.width(name) for name, shape in weights if shape == largest), default=4
            ),
            attributes=_attributes(node),
            constants={
                position: constants.values(name)
                for position, name in enumerate(node.input)
                if name in constants and constants.values(name)
            },
        )


def _with_biases(operations: Sequence[Operation]) -> list[Operation]:
    """*operations*, in which a matrix product and the bias added to it are one linear layer.

    torch exports a linear layer on more than two axes as `MatMul` and `Add`. Only the bias still
    has the layer's name.
    """
    reads = Counter(name for operation in operations for name in operation.inputs)
    products = {one.output: one for one in operations if one.kind == "MatMul" and one.parameters}
    found: list[Operation] = []
    for operation in operations:
        product = products.get(operation.inputs[0])
        is_bias = operation.kind == "Add" and len(operation.weight_shape) == 1
        if product is None or not is_bias or reads[product.output] > 1:
            found.append(operation)
            continue
        found.remove(product)
        parameters = product.parameters + operation.parameters
        found.append(
            replace(product, name=operation.name, output=operation.output, parameters=parameters)
        )
    return found


class _Constants:
    """The values of a graph that do not depend on the image."""

    def __init__(self, model: ModelProto) -> None:
        import onnx

        self._float = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
        self._shape = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self._type = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._values = {
            tensor.name: tuple(onnx.numpy_helper.to_array(tensor).ravel().tolist())
            for tensor in model.graph.initializer
            if tensor.data_type == onnx.TensorProto.INT64 and prod(tensor.dims) <= SMALL
        }

    def __contains__(self, name: str) -> bool:
        return name in self._shape

    def add(self, node: NodeProto) -> None:
        """Take the outputs of *node*, all of whose inputs are constants, for constants too."""
        import onnx

        shape: tuple[int, ...] = ()
        kind, values = onnx.TensorProto.FLOAT, ()
        given = [name for name in node.input if name in self]
        if node.op_type == "Constant":
            tensor = next((item.t for item in node.attribute if item.name == "value"), None)
            if tensor is not None:
                array = onnx.numpy_helper.to_array(tensor)
                shape, kind = tuple(array.shape), tensor.data_type
                values = tuple(array.ravel().tolist()) if array.dtype.kind == "i" else ()
        elif given:
            shape, kind = self._shape[given[0]], self._type[given[0]]
        for name in node.output:
            self._shape[name], self._type[name], self._values[name] = shape, kind, values

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape[name]

    def values(self, name: str) -> tuple[int, ...]:
        return self._values.get(name, ())

    def is_weight(self, name: str) -> bool:
        """Whether *name* holds learned numbers rather than shapes or axes."""
        return self._type[name] in self._float

    def width(self, name: str) -> int:
        """Bytes of one value."""
        import onnx

        return {
            onnx.TensorProto.INT8: 1,
            onnx.TensorProto.UINT8: 1,
            onnx.TensorProto.FLOAT16: 2,
        }.get(self._type[name], 4)


def _fix_sizes(model: ModelProto, image_size: tuple[int, int] | None) -> None:
    """One image of *image_size*; the shapes that the file states for other sizes are dropped."""
    graph = model.graph
    names = {tensor.name for tensor in graph.initializer}
    image = next(value for value in graph.input if value.name not in names)
    dims = image.type.tensor_type.shape.dim
    _state(image, (1, *(dim.dim_value for dim in dims[1:])))
    if image_size is not None and len(dims) == 4:
        height = 1 if dims[3].dim_value in {1, 3} else 2
        for axis, size in enumerate(image_size):
            dims[height + axis].dim_value = size
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")


def _state(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        if size:
            dim.dim_value = size


def _lighten(model: ModelProto) -> None:
    """Replace large weights by their shapes: inference copies the model, ResNet-50's 100 MB too."""
    import onnx

    graph = model.graph
    for index in range(len(graph.initializer) - 1, -1, -1):
        tensor = graph.initializer[index]
        if prod(tensor.dims) > SMALL:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
            del graph.initializer[index]


def _attributes(node: NodeProto) -> dict[str, object]:
    import onnx

    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _module(weight: str, output: str) -> str:
    """`features.0.0` of `network.features.0.0.weight`; *output* where there is no weight."""
    if "." not in weight:
        return output
    return weight.rpartition(".")[0].removeprefix("network.")

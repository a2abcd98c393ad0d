"""The package's graph: pixels in, the source's own nodes, logits and probabilities out.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from models.errors import ImportRefused
from training.importing.batch import with_free_batch
from training.importing.declared import Normalisation
from training.importing.onnx_graph import free_our_names, makers
from training.importing.signature import Signature

GREY = (19595.0, 38470.0, 7471.0)
"""Parts of red, green and blue in 65,536. Source: Pillow, `L24` in src/libImaging/Convert.c."""
ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
}
PASSES_ON = ("Cast", "Identity", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Dropout")
"""Operations after which the values for an image are what they were."""
TINY = 1e-30
"""Added before a logarithm, far below what a probability can show."""


class GraphWriter:
    """Adds nodes and constants to a graph; every name begins with `loupe/`."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.opset: int = model.opset_import[0].version
        # Another writer may have been here.
        self._count = len(self.graph.node) + len(self.graph.initializer)

    def constant(self, values: Sequence[float] | NDArray[np.generic]) -> str:
        """The name of a constant; numbers become float32."""
        array = values if isinstance(values, np.ndarray) else np.asarray(values, dtype=np.float32)
        name = self._name("constant")
        self.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        )
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # Any: ONNX
        """A node of *kind*, appended; returns the name of its output."""
        name = output or self._name(kind.lower())
        self.graph.node.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def shaped(self, value: str, shape: Sequence[int]) -> str:
        """*value* in another *shape*, where -1 is what is left."""
        return self.add("Reshape", value, self.constant(np.asarray(shape, dtype=np.int64)))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"loupe/{kind}_{self._count}"


def wrapped(
    source: ModelProto,
    signature: Signature,
    how: Normalisation,
    *,
    size: tuple[int, int],
    gives_probabilities: bool,
) -> ModelProto:
    """A model with input `image` uint8 [N,H,W,3] and outputs `logits` and `probabilities` [N,K].

    It does with pixels what *how* says, and then what *source* does, which gives logits, or with
    *gives_probabilities* probabilities. Raises `ImportRefused` where the scores are not those of a
    classifier.
    """
    model = with_free_batch(source, batch=signature.batch)
    free_our_names(model.graph)
    taken = f"source/{signature.output}"
    output = taken if taken in makers(model.graph) else signature.output
    given = model.graph.input[0].name
    del model.graph.input[:]
    del model.graph.output[:]
    own = list(model.graph.node)
    del model.graph.node[:]
    model.graph.input.append(
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *size, 3])
    )
    writer = GraphWriter(model)
    _normalise(writer, given, signature, how, size=size)
    model.graph.node.extend(own)
    logits = _logits(writer, output, signature.classes, gives_probabilities=gives_probabilities)
    classes = max(2, signature.classes)
    writer.add("Identity", logits, output="logits")
    writer.add("Softmax", "logits", output="probabilities", axis=1)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes])
        for name in ("logits", "probabilities")
    )
    return model


def _normalise(
    writer: GraphWriter,
    output: str,
    signature: Signature,
    how: Normalisation,
    *,
    size: tuple[int, int],
) -> None:
    """The nodes from `image` to the source's input, called *output*."""
    value = writer.add("Cast", "image", to=TensorProto.FLOAT)
    if how.channels == "bgr":
        value = writer.add("Gather", value, writer.constant(np.asarray([2, 1, 0])), axis=3)
    if how.channels == "grey":
        value = _grey(writer, value)
    if any(factor != 1.0 for factor in how.multiply):
        value = writer.add("Mul", value, writer.constant(how.multiply), output="loupe/scaled")
    if any(how.subtract):
        value = writer.add("Sub", value, writer.constant(how.subtract), output="loupe/normalised")
    if signature.layout == "nchw":
        value = writer.add("Transpose", value, perm=[0, 3, 1, 2])
    if signature.layout == "nhw":
        value = writer.shaped(value, (-1, *size))
    if signature.dtype != "float32":
        value = writer.add("Cast", value, to=ELEMENTS[signature.dtype])
    writer.add("Identity", value, output=output)


def _grey(writer: GraphWriter, value: str) -> str:
    """Pillow's grey of RGB pixels, to the bit: every number here is whole and exact in float32."""
    weights = writer.constant(np.asarray(GREY, dtype=np.float32)[:, np.newaxis])
    summed = writer.add("MatMul", value, weights)
    rounded = writer.add("Add", summed, writer.constant([32768.0]))
    return writer.add("Floor", writer.add("Mul", rounded, writer.constant([1.0 / 65536.0])))


def _logits(writer: GraphWriter, output: str, classes: int, *, gives_probabilities: bool) -> str:
    """The value [N,K] of which softmax gives the probabilities.

    A softmax at the end is left out. One sigmoid for two classes becomes two logits of half its
    input, whose softmax is the sigmoid.
    """
    kind, before = _ending(writer, output)
    if kind == "Sigmoid" and classes > 1:
        raise ImportRefused(
            f"the graph ends in a sigmoid for each of {classes} classes, which may all be true at"
            " once; Loupe serves one answer for each image: export a model that ends in softmax"
        )
    value = writer.add("Cast", before if kind else output, to=TensorProto.FLOAT)
    flat = writer.shaped(value, (-1, classes))
    if gives_probabilities and not kind:
        if classes == 1:
            other = writer.add("Sub", writer.constant([1.0]), flat)
            flat = writer.add("Concat", other, flat, axis=1)
        return writer.add("Log", writer.add("Add", flat, writer.constant([TINY])))
    if classes == 1:
        halves = writer.constant(np.asarray([[-0.5, 0.5]], dtype=np.float32))
        return writer.add("MatMul", flat, halves)
    return flat


def are_probabilities(scores_NK: NDArray[np.float32]) -> bool:
    """Whether every row of *scores_NK* is one of probabilities: none negative, and they sum to 1.

    A single score is one if it is between 0 and 1.
    """
    if scores_NK.shape[1] == 1:
        return bool((scores_NK >= 0.0).all() and (scores_NK <= 1.0).all())
    sums_N = scores_NK.sum(axis=1)
    return bool((scores_NK >= 0.0).all() and np.abs(sums_N - 1.0).max() < 1e-3)


def _ending(writer: GraphWriter, output: str) -> tuple[str, str]:
    """(kind, input) of the softmax or sigmoid at the end of the graph; two empty words if none."""
    made = makers(writer.graph)
    node: NodeProto | None = made.get(output)
    while node is not None and node.op_type in PASSES_ON:
        node = made.get(node.input[0])
    if node is not None and node.op_type in ("Softmax", "Sigmoid"):
        return node.op_type, node.input[0]
    return "", ""

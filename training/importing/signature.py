"""What a foreign graph takes and gives. One image in, one score for each class out, or a refusal.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from models.errors import ImportRefused
from training.importing.declared import Declared, Layout
from training.importing.onnx_graph import attribute, constants

TYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
}
COLOURS = (1, 3)
"""Channels that an image may have: grey, or three colours."""
Sizes = tuple[int | None, ...]
"""None: free."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The one input and the one output that matter."""

    input: str
    dtype: str
    layout: Layout
    channels: int
    height: int | None
    width: int | None
    batch: int | None
    """None: any number of images."""
    output: str
    classes: int
    """Values that the output has for each image."""

    def size(self, declared: Declared) -> tuple[int, int]:
        """Height and width, from the graph or as declared.

        Raises `ImportRefused` if both are known and differ, or neither is.
        """
        wanted = (declared.size, declared.size) if isinstance(declared.size, int) else declared.size
        fixed = (self.height, self.width)
        if wanted is None and None in fixed:
            raise ImportRefused(
                "the graph takes images of any size; say which the model was trained on, as in"
                " --preprocess size=224"
            )
        found = tuple(one or other for one, other in zip(fixed, wanted or fixed, strict=True))
        if wanted is not None and found != wanted:
            raise ImportRefused(
                f"the graph takes images of {self.height}x{self.width} pixels, and --preprocess"
                f" says {wanted[0]}x{wanted[1]}; leave size out, or export the model again"
            )
        assert found[0] is not None
        assert found[1] is not None
        return found[0], found[1]


def signature_of(model: ModelProto, declared: Declared, *, labels: int | None) -> Signature:
    """The signature of *model*, which answers with so many *labels*, if that is known.

    Raises `ImportRefused` for whatever is no image classifier.
    """
    image = _input(model)
    sizes = _sizes(image)
    kind = TYPES.get(image.type.tensor_type.elem_type)
    if kind is None:
        raise ImportRefused(
            f"input {image.name} is {_type_name(image)}; expected pixels as float or uint8"
        )
    layout = _layout(model, image.name, sizes, declared.layout)
    height, width, channels = _axes(layout, sizes)
    output, classes = _output(model, labels)
    return Signature(
        input=image.name,
        dtype=kind,
        layout=layout,
        channels=channels or 3,
        height=height,
        width=width,
        batch=sizes[0],
        output=output,
        classes=classes,
    )


def _input(model: ModelProto) -> ValueInfoProto:
    inputs = list(model.graph.input)
    if len(inputs) != 1:
        raise ImportRefused(
            f"the graph has {len(inputs)} inputs"
            f" ({', '.join(value.name for value in inputs) or 'none'}); expected one image: export"
            " the classifier alone, without its pre- or post-processing"
        )
    [image] = inputs
    assert isinstance(image, ValueInfoProto)
    return image


def _layout(model: ModelProto, name: str, sizes: Sizes, declared: Layout | None) -> Layout:
    """The order of the axes: as the sizes say, else as the first operation says, else *declared*.

    Raises `ImportRefused` if these contradict each other, or do not say.
    """
    if len(sizes) == 3:
        return "nhw"
    if len(sizes) != 4:
        raise ImportRefused(
            f"input {name} has {_written(sizes)} as its shape; expected [N,3,H,W] or [N,H,W,3]:"
            " this is no image classifier"
        )
    places: dict[Layout, int | None] = {"nchw": sizes[1], "nhwc": sizes[3]}
    possible = [layout for layout, size in places.items() if size is None or size in COLOURS]
    if not possible:
        raise ImportRefused(
            f"input {name} has shape {_written(sizes)}, with neither 3 nor 1 channels; Loupe gives"
            " photos in colour or grey: export a model that takes those"
        )
    if declared is not None and declared not in possible:
        raise ImportRefused(
            f"--preprocess says layout={declared}, but input {name} has shape {_written(sizes)};"
            f" leave layout out: it is {possible[0]}"
        )
    found = declared or (possible[0] if len(possible) == 1 else _by_first_use(model, name))
    if found is None:
        raise ImportRefused(
            f"input {name} has shape {_written(sizes)}, which leaves the order of its axes open;"
            " say --preprocess layout=nchw (torch) or layout=nhwc (TensorFlow)"
        )
    return found


def _by_first_use(model: ModelProto, name: str) -> Layout | None:
    """`nchw` if a convolution reads the input as it is, `nhwc` if it is turned first."""
    values, readers = {name}, list[NodeProto]()
    for node in model.graph.node:
        if not values.intersection(node.input):
            continue
        if node.op_type in ("Cast", "Sub", "Add", "Mul", "Div", "Identity"):
            values.update(node.output)
        else:
            readers.append(node)
    kinds = {node.op_type for node in readers}
    if kinds == {"Conv"}:
        return "nchw"
    if kinds == {"Transpose"} and attribute(readers[0], "perm") == [0, 3, 1, 2]:
        return "nhwc"
    return None


def _axes(layout: Layout, sizes: Sizes) -> tuple[int | None, int | None, int | None]:
    """Height, width, channels."""
    if layout == "nhw":
        return sizes[1], sizes[2], 1
    if layout == "nchw":
        return sizes[2], sizes[3], sizes[1]
    return sizes[1], sizes[2], sizes[3]


def _output(model: ModelProto, labels: int | None) -> tuple[str, int]:
    """Name and number of classes of the output that scores them.

    Raises `ImportRefused` if there is none, or more than one.
    """
    found = []
    for value in model.graph.output:
        sizes = _sizes(value)
        flat = [size for size in sizes[1:] if size != 1] if len(sizes) >= 2 else [None, None]
        if len(flat) <= 1 and value.type.tensor_type.elem_type in TYPES:
            classes = (flat or [1])[0]
            found.append((value.name, classes))
    fitting = [(name, size) for name, size in found if labels is None or size in (labels, None)]
    if labels == 2:
        fitting = fitting or [(name, size) for name, size in found if size == 1]
    if len(fitting) == 1 and (len(model.graph.output) == 1 or labels is not None):
        name, classes = fitting[0]
        return name, classes or _counted(model, name) or labels or 0
    shapes = ", ".join(f"{value.name} {_written(_sizes(value))}" for value in model.graph.output)
    if (len(model.graph.output) > 1 and not fitting) or len(fitting) > 1:
        raise ImportRefused(
            f"the graph has outputs {shapes}: that looks like a detector or several heads. Loupe"
            " serves classifiers, which have one score for each class: export that output alone"
        )
    if found and labels is not None:
        raise ImportRefused(_misfit(found[0][1], labels))
    raise ImportRefused(
        f"the graph has output {shapes}; expected [N,K], one score for each of K classes: this is"
        " no classifier, or it lacks its last layer"
    )


def _misfit(classes: int | None, labels: int) -> str:
    hint = ""
    if classes == labels + 1:
        hint = "; TensorFlow's ImageNet models have a first class `background`, so add that line"
    return (
        f"there are {labels} labels, and the model answers with {classes} classes; give the file"
        f" with one label for each output, in its order{hint}"
    )


def _counted(model: ModelProto, output: str) -> int | None:
    """Classes by shape inference, where the graph does not declare them."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.output:
        if value.name == output:
            sizes = _sizes(value)
            return sizes[1] if len(sizes) > 1 else None
    weights = constants(model.graph)
    last = next((node for node in model.graph.node if output in node.output), None)
    if last is not None and last.op_type == "Gemm" and last.input[1] in weights:
        return int(weights[last.input[1]].shape[0 if attribute(last, "transB", 0) else 1])
    return None


def _sizes(value: ValueInfoProto) -> Sizes:
    return tuple(
        size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None
        for size in value.type.tensor_type.shape.dim
    )


def _written(sizes: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"


def _type_name(value: ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return TensorProto.DataType.Name(kind).lower() if kind else "no tensor"

"""How each operation changes what a cell sees; `receptive_fields` follows a whole network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from models.inspection.operations import Operation
from models.inspection.receptive_field import WHOLE, Axis, Field

WINDOWED = frozenset({"Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool"})
POINTWISE = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Elu",
        "Selu",
        "Gelu",
        "Erf",
        "Exp",
        "Sqrt",
        "Neg",
        "Abs",
        "Reciprocal",
        "Pow",
        "Softplus",
        "Mish",
        "Swish",
        "BatchNormalization",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Sum",
        "Max",
        "Min",
        "Where",
        "Greater",
        "Concat",
        "Squeeze",
        "Unsqueeze",
        "Split",
        "Floor",
        "Ceil",
        "Round",
        "LRN",
        "Silu",
    }
)
"""Operations whose cell at a place depends on the cells at that place alone."""


def receptive_fields(
    operations: Sequence[Operation], image: str, *, channels_last: bool
) -> dict[str, Field | None]:
    """The field of each value; None where an operation has no receptive field that can be told.

    *image* is the name of the image's value.
    """
    unit = Axis(1.0, 1.0, 0.5)
    found: dict[str, Field | None] = {
        image: Field(unit, unit, spatial=(1, 2) if channels_last else (2, 3))
    }
    for operation in operations:
        fields = [found.get(name) for name in operation.inputs]
        found[operation.output] = (
            None
            if any(field is None for field in fields)
            else _after(operation, [field for field in fields if field is not None])
        )
    return found


def window(operation: Operation) -> list[tuple[int, int, int, int, int]]:
    """Kernel, stride, padding before, padding after and dilation along each spatial axis."""
    read = operation.attributes
    kernel = _integers(read.get("kernel_shape")) or list(operation.weight_shape[2:])
    axes = len(kernel)
    strides = _integers(read.get("strides")) or [1] * axes
    dilations = _integers(read.get("dilations")) or [1] * axes
    pads = _integers(read.get("pads")) or [0] * (2 * axes)
    automatic = read.get("auto_pad", b"NOTSET")
    if automatic in {b"SAME_UPPER", b"SAME_LOWER"}:
        sizes = operation.input_shapes[0][2:]
        for axis, (size, length, stride) in enumerate(zip(sizes, kernel, strides, strict=True)):
            missing = max(0, (-(-size // stride) - 1) * stride + length - size)
            small, large = missing // 2, missing - missing // 2
            begin, end = (small, large) if automatic == b"SAME_UPPER" else (large, small)
            pads[axis], pads[axis + axes] = begin, end
    return list(zip(kernel, strides, pads[:axes], pads[axes:], dilations, strict=True))


def _after(operation: Operation, fields: list[Field]) -> Field | None:
    if all(field.whole for field in fields):
        return fields[0]
    rule = _RULES.get(operation.kind)
    return rule(operation, fields) if rule else None


def _windowed(operation: Operation, fields: list[Field]) -> Field | None:
    first = fields[0]
    if first.rows is None or first.columns is None:
        return first
    (kh, sh, ph, _, dh), (kw, sw, pw, _, dw) = window(operation)
    return replace(
        first,
        rows=first.rows.windowed(kh, sh, ph, dh),
        columns=first.columns.windowed(kw, sw, pw, dw),
    )


def _transposed(operation: Operation, fields: list[Field]) -> Field | None:
    order = _integers(operation.attributes.get("perm"))
    down, across = fields[0].spatial
    return replace(fields[0], spatial=(order.index(down), order.index(across)))


def _reshaped(operation: Operation, fields: list[Field]) -> Field | None:
    """The same field if the spatial axes stay; the whole image if all cells end in one vector."""
    field, before, after = fields[0], operation.input_shapes[0], operation.shape
    if field.whole or before == after:
        return field
    down, across = field.spatial
    if operation.kind == "Slice":
        kept = all(before[axis] == after[axis] for axis in field.spatial)
        return field if kept else None
    if len(before) == len(after) and all(before[axis] == after[axis] for axis in (down, across)):
        return field
    # Channels may be cut into groups in front of the spatial axes, which stay last.
    if after[-2:] == before[-2:] and (down, across) == (len(before) - 2, len(before) - 1):
        return replace(field, spatial=(len(after) - 2, len(after) - 1))
    return WHOLE if len(after) == 2 else None


def _over_axes(operation: Operation, fields: list[Field]) -> Field | None:
    """Operations that mix all cells along some axes: local only if these are not spatial."""
    rank = len(operation.input_shapes[0])
    axis = operation.attributes.get("axis", -1)
    last = axis if isinstance(axis, int) else -1
    if operation.kind == "Softmax":
        axes = [last]
    elif operation.kind == "LayerNormalization":
        axes = list(range(last % rank, rank))
    else:
        axes = _integers(operation.attributes.get("axes")) or list(
            operation.constants.get(1, range(rank))
        )
    field = fields[0]
    touched = {axis % rank for axis in axes} & set(field.spatial)
    if field.whole or not touched:
        return field
    if operation.kind == "LayerNormalization":
        return replace(field, global_context=True)
    return WHOLE if len(touched) == 2 else None


def _linear(operation: Operation, fields: list[Field]) -> Field | None:
    """A product with a constant matrix: along the channels, or along the rows or columns.

    The latter is how Loupe's networks pool a map to a grid, since ONNX has no adaptive pooling.
    """
    if len(fields) > 1:
        return fields[0] if all(field.whole for field in fields) else None
    field, before, after = fields[0], operation.input_shapes[0], operation.shape
    changed = [
        axis for axis, sizes in enumerate(zip(before, after, strict=True)) if len(set(sizes)) > 1
    ]
    axis = changed[0] if changed else len(before) - 1
    if field.whole or axis not in field.spatial:
        return field
    return _binned(operation, fields)


def _binned(operation: Operation, fields: list[Field]) -> Field:
    field = fields[0]
    if field.rows is None or field.columns is None:
        return field
    down, across = field.spatial
    before, after = operation.input_shapes[0], operation.shape
    if after[down] == after[across] == 1:
        return WHOLE
    return replace(
        field,
        rows=field.rows.binned(before[down], after[down]),
        columns=field.columns.binned(before[across], after[across]),
    )


def _padded(operation: Operation, fields: list[Field]) -> Field:
    field = fields[0]
    if field.rows is None or field.columns is None:
        return field
    pads = _integers(operation.attributes.get("pads")) or list(operation.constants.get(1, ()))
    down, across = field.spatial
    return replace(
        field,
        rows=field.rows.windowed(1, 1, pads[down], 1),
        columns=field.columns.windowed(1, 1, pads[across], 1),
    )


def _joined(operation: Operation, fields: list[Field]) -> Field | None:
    """The join of branches. A branch of one cell that sees everything is a gate for the others."""
    local = [field for field in fields if not field.whole]
    if not local:
        return fields[0]
    if len({field.spatial for field in local}) > 1:
        return None
    result = local[0]
    for other in local[1:]:
        if not (result.rows and result.columns and other.rows and other.columns):
            return None
        if (result.rows.jump, result.columns.jump) != (other.rows.jump, other.columns.jump):
            return None
        result = replace(
            result,
            rows=result.rows.joined(other.rows),
            columns=result.columns.joined(other.columns),
        )
    global_context = any(field.global_context for field in local) or len(local) < len(fields)
    return replace(result, global_context=global_context)


def _integers(value: object) -> list[int]:
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else []


_RULES: dict[str, Callable[[Operation, list[Field]], Field | None]] = {
    **dict.fromkeys(WINDOWED, _windowed),
    **dict.fromkeys(POINTWISE, _joined),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "Flatten"), lambda *_: WHOLE),
    **dict.fromkeys(
        ("InstanceNormalization", "GroupNormalization"),
        lambda _, fields: replace(fields[0], global_context=True),
    ),
    **dict.fromkeys(("Gemm", "MatMul"), _linear),
    **dict.fromkeys(("Reshape", "Slice"), _reshaped),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "Softmax", "LayerNormalization"),
        _over_axes,
    ),
    "AdaptiveAveragePool": _binned,
    "Pad": _padded,
    "Transpose": _transposed,
}
"""The rule for each operation. One that is not here has no receptive field that can be told."""

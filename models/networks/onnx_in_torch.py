"""An ONNX classifier run by torch, operation by operation, so that it has gradients.

For looking inside a package, also one that was trained elsewhere. ONNX Runtime serves; this runs
the same graph slowly, in float32, and lets a gradient flow back from any value to the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.errors import PackageError
from models.runtime.answer_graph import ancestors, keep

Attributes = Mapping[str, Any]


class OnnxNetwork:
    """The part of an ONNX graph that makes the values *outputs*.

    Raises `PackageError` with the operation that is not known here.
    """

    def __init__(self, encoded: bytes, outputs: Sequence[str], *, guided: bool = False) -> None:
        """With *guided* a ReLU passes back only what is positive.

        Source: Springenberg et al. 2015, "Striving for Simplicity", section 3.4.
        """
        model = onnx.ModelProto.FromString(encoded)
        keep(model.graph, ancestors(model.graph, outputs))
        self.outputs = tuple(outputs)
        self._nodes = [
            (
                node.op_type,
                tuple(node.input),
                tuple(node.output),
                {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
            )
            for node in model.graph.node
        ]
        unknown = sorted({kind for kind, *_ in self._nodes} - _OPERATIONS.keys())
        if unknown:
            raise PackageError(
                f"gradients cannot be taken through {', '.join(unknown)}; features, occlusion and"
                " all shapes work without them"
            )
        self._constants = {
            tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            for tensor in model.graph.initializer
        }
        names = {tensor.name for tensor in model.graph.initializer}
        self._image = next(value.name for value in model.graph.input if value.name not in names)
        self._relu = _guided_relu if guided else torch.relu

    def __call__(self, pixels_NHWC: Tensor) -> list[Tensor]:
        """The outputs for float pixels of 0 to 255, which may require a gradient."""
        values = self.trace(pixels_NHWC)
        return [values[name] for name in self.outputs]

    def trace(self, pixels_NHWC: Tensor, *, weights: bool = False) -> dict[str, Tensor]:
        """Every value by its name, for pixels as above; with *weights*, they have gradients too."""
        values = {**self._constants, self._image: pixels_NHWC}
        if weights:
            values |= {
                name: constant.clone().requires_grad_()
                for name, constant in self._constants.items()
                if constant.is_floating_point()
            }
        for kind, inputs, outputs, attributes in self._nodes:
            if kind == "Relu":
                values[outputs[0]] = self._relu(values[inputs[0]])
                continue
            given = [values[name] if name else None for name in inputs]
            values[outputs[0]] = _OPERATIONS[kind](given, attributes)
        return values

    def weights_of(self, output: str) -> tuple[str, ...]:
        """Names of the values that make *output* and do not depend on the image."""
        moving = {self._image}
        for _, inputs, outputs, _ in self._nodes:
            if output in outputs:
                return tuple(name for name in inputs if name and name not in moving)
            if moving & set(inputs):
                moving |= set(outputs)
        return ()


class _GuidedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # Any: as torch has it
        ctx.save_for_backward(value)
        return value.clamp(min=0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        value: Tensor = ctx.saved_tensors[0]
        return gradients[0].clamp(min=0.0) * (value > 0.0)


def _guided_relu(value: Tensor) -> Tensor:
    result: Tensor = _GuidedRelu.apply(value)
    return result


def _padded(value: Tensor, pads: Sequence[int], fill: float) -> tuple[Tensor, tuple[int, int]]:
    """*value* padded where the two sides differ, and the padding that torch can do itself."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return value, (top, left)
    return F.pad(value, (left, right, top, bottom), value=fill), (0, 0)


def _pads(given: Tensor, kernel: Sequence[int], read: Attributes) -> list[int]:
    """Top, left, bottom, right. Source: ONNX, `Conv`, attribute `auto_pad`."""
    automatic = read.get("auto_pad", b"NOTSET")
    if automatic not in {b"SAME_UPPER", b"SAME_LOWER"}:
        return list(read.get("pads", [0, 0, 0, 0]))
    missing = [
        max(0, (-(-size // stride) - 1) * stride + length - size)
        for size, length, stride in zip(
            given.shape[2:], kernel, read.get("strides", [1, 1]), strict=True
        )
    ]
    small, large = [part // 2 for part in missing], [part - part // 2 for part in missing]
    return [*small, *large] if automatic == b"SAME_UPPER" else [*large, *small]


def _conv(given: list[Any], read: Attributes) -> Tensor:
    weight = given[1]
    value, padding = _padded(given[0], _pads(given[0], weight.shape[2:], read), 0.0)
    return F.conv2d(
        value,
        weight,
        given[2] if len(given) > 2 else None,
        stride=tuple(read.get("strides", [1, 1])),
        padding=padding,
        dilation=tuple(read.get("dilations", [1, 1])),
        groups=read.get("group", 1),
    )


def _max_pool(given: list[Any], read: Attributes) -> Tensor:
    kernel = read["kernel_shape"]
    value, padding = _padded(given[0], _pads(given[0], kernel, read), float("-inf"))
    return F.max_pool2d(
        value,
        kernel,
        read.get("strides", [1, 1]),
        padding,
        read.get("dilations", [1, 1]),
        ceil_mode=bool(read.get("ceil_mode", 0)),
    )


def _average_pool(given: list[Any], read: Attributes) -> Tensor:
    kernel, pads = read["kernel_shape"], _pads(given[0], read["kernel_shape"], read)
    value, padding = _padded(given[0], pads, 0.0)
    return F.avg_pool2d(
        value,
        kernel,
        read.get("strides", [1, 1]),
        padding,
        bool(read.get("ceil_mode", 0)),
        bool(read.get("count_include_pad", 0)),
    )


def _gemm(given: list[Any], read: Attributes) -> Tensor:
    left = given[0].T if read.get("transA") else given[0]
    right = given[1].T if read.get("transB") else given[1]
    product = read.get("alpha", 1.0) * (left @ right)
    shifted: Tensor = product if len(given) < 3 else product + read.get("beta", 1.0) * given[2]
    return shifted


def _reduce(given: list[Any], read: Attributes) -> tuple[list[int], bool]:
    axes = read.get("axes") or (given[1].tolist() if len(given) > 1 else None)
    return axes or list(range(given[0].dim())), bool(read.get("keepdims", 1))


def _reshape(given: list[Any], _read: Attributes) -> Tensor:
    sizes = [
        given[0].shape[index] if size == 0 else size for index, size in enumerate(given[1].tolist())
    ]
    reshaped: Tensor = given[0].reshape(sizes)
    return reshaped


def _gather(given: list[Any], read: Attributes) -> Tensor:
    axis, indices = read.get("axis", 0), given[1]
    taken = torch.index_select(given[0], axis, indices.reshape(-1).long())
    shape = (*given[0].shape[:axis], *indices.shape, *given[0].shape[axis + 1 :])
    return taken.reshape(shape)


def _batch_norm(given: list[Any], read: Attributes) -> Tensor:
    value, scale, shift, mean, variance = given
    return F.batch_norm(value, mean, variance, scale, shift, eps=read.get("epsilon", 1e-5))


def _layer_norm(given: list[Any], read: Attributes) -> Tensor:
    axis = read.get("axis", -1)
    weight, bias, *_ = (*given[1:], None, None)
    return F.layer_norm(
        given[0], given[0].shape[axis:], weight, bias, eps=read.get("epsilon", 1e-5)
    )


def _squeeze(given: list[Any], read: Attributes) -> Tensor:
    axes = read.get("axes") or (given[1].tolist() if len(given) > 1 else None)
    squeezed: Tensor = given[0].squeeze() if axes is None else given[0].squeeze(tuple(axes))
    return squeezed


def _unsqueeze(given: list[Any], read: Attributes) -> Tensor:
    value: Tensor = given[0]
    for axis in sorted(read.get("axes") or given[1].tolist()):
        value = value.unsqueeze(axis)
    return value


def _cast(given: list[Any], read: Attributes) -> Tensor:
    # Pixels are floats here already, and must keep their gradient.
    value: Tensor = given[0]
    if value.is_floating_point() and read["to"] == onnx.TensorProto.FLOAT:
        return value
    dtype = onnx.helper.tensor_dtype_to_np_dtype(read["to"])
    return value.to(torch.from_numpy(np.zeros(0, dtype)).dtype)


def _clip(given: list[Any], read: Attributes) -> Tensor:
    low = given[1] if len(given) > 1 else read.get("min")
    high = given[2] if len(given) > 2 else read.get("max")
    clipped: Tensor = torch.clamp(given[0], low, high)
    return clipped


def _dequantize(given: list[Any], read: Attributes) -> Tensor:
    value, scale = given[0].float(), given[1]
    zero = given[2].float() if len(given) > 2 else torch.zeros(())
    if scale.dim():
        shape = [1] * value.dim()
        shape[read.get("axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.dim() else zero
    result: Tensor = (value - zero) * scale
    return result


def _quantize(given: list[Any], _read: Attributes) -> Tensor:
    """The whole numbers, as floats; the gradient passes as if nothing was rounded."""
    value, scale = given[0], given[1]
    zero = given[2] if len(given) > 2 else torch.zeros((), dtype=torch.uint8)
    limits = torch.iinfo(zero.dtype)
    exact = value / scale + zero.float()
    rounded: Tensor = exact + (exact.round() - exact).detach()
    return rounded.clamp(limits.min, limits.max)


_OPERATIONS: dict[str, Callable[[list[Any], Attributes], Tensor]] = {
    "Add": lambda given, _: given[0] + given[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda given, read: torch.cat(given, read["axis"]),
    "Constant": lambda _, read: torch.from_numpy(onnx.numpy_helper.to_array(read["value"]).copy()),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda given, _: given[0] / given[1],
    "Dropout": lambda given, _: given[0],
    "Erf": lambda given, _: torch.erf(given[0]),
    "Equal": lambda given, _: given[0] == given[1],
    "Exp": lambda given, _: torch.exp(given[0]),
    "Expand": lambda given, _: given[0] * torch.ones(given[1].tolist(), dtype=given[0].dtype),
    "Flatten": lambda given, read: given[0].flatten(read.get("axis", 1)),
    "Gather": _gather,
    "Gelu": lambda given, read: F.gelu(
        given[0], approximate=read.get("approximate", b"none").decode()
    ),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda given, _: given[0].mean(dim=(2, 3), keepdim=True),
    "Greater": lambda given, _: given[0] > given[1],
    "GreaterOrEqual": lambda given, _: given[0] >= given[1],
    "HardSigmoid": lambda given, read: (
        read.get("alpha", 0.2) * given[0] + read.get("beta", 0.5)
    ).clamp(0.0, 1.0),
    "HardSwish": lambda given, _: F.hardswish(given[0]),
    "Identity": lambda given, _: given[0],
    "InstanceNormalization": lambda given, read: F.instance_norm(
        given[0], weight=given[1], bias=given[2], eps=read.get("epsilon", 1e-5)
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda given, read: F.leaky_relu(given[0], read.get("alpha", 0.01)),
    "Less": lambda given, _: given[0] < given[1],
    "LessOrEqual": lambda given, _: given[0] <= given[1],
    "MatMul": lambda given, _: given[0] @ given[1],
    "MaxPool": _max_pool,
    "Mul": lambda given, _: given[0] * given[1],
    "Neg": lambda given, _: -given[0],
    "Pow": lambda given, _: given[0] ** given[1],
    "QuantizeLinear": _quantize,
    "Range": lambda given, _: torch.arange(*(int(part) for part in given)),
    "ReduceMean": lambda given, read: given[0].mean(*_reduce(given, read)),
    "ReduceSum": lambda given, read: given[0].sum(*_reduce(given, read)),
    "Relu": lambda given, _: torch.relu(given[0]),
    "Reshape": _reshape,
    "Shape": lambda given, read: torch.tensor(
        given[0].shape[read.get("start", 0) : read.get("end")]
    ),
    "Sigmoid": lambda given, _: torch.sigmoid(given[0]),
    "Softmax": lambda given, read: torch.softmax(given[0], read.get("axis", -1)),
    "Sqrt": lambda given, _: torch.sqrt(given[0]),
    "Squeeze": _squeeze,
    "Sub": lambda given, _: given[0] - given[1],
    "Tanh": lambda given, _: torch.tanh(given[0]),
    "Transpose": lambda given, read: given[0].permute(*read["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda given, _: torch.where(given[0], given[1], given[2]),
}
"""What an operation computes from its inputs and attributes. Source: ONNX's operators, opset 20."""

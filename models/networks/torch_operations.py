"""The operations of a network in torch, as `models.inspection` describes those of an ONNX graph.

One forward pass on torch's `meta` device, which computes shapes and no numbers, is recorded call by
call. So any control flow in a network is followed, and a skip connection is seen as it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from models.inspection.operations import Operation

IMAGE = "image"
_KINDS = {
    "conv2d": "Conv",
    "batch_norm": "BatchNormalization",
    "layer_norm": "LayerNormalization",
    "group_norm": "GroupNormalization",
    "instance_norm": "InstanceNormalization",
    "linear": "Gemm",
    "max_pool2d": "MaxPool",
    "avg_pool2d": "AveragePool",
    "adaptive_avg_pool2d": "AdaptiveAveragePool",
    "cat": "Concat",
    "permute": "Transpose",
    "view": "Reshape",
    "reshape": "Reshape",
    "flatten": "Flatten",
    "mean": "ReduceMean",
    "matmul": "MatMul",
    "softmax": "Softmax",
    "pad": "Pad",
    "relu6": "Clip",
    "hardtanh": "Clip",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "leaky_relu": "LeakyRelu",
}
"""torch's name -> ONNX's, where capital letters alone do not make it."""
_PASSED_THROUGH = frozenset({"dropout", "contiguous", "to", "float", "stochastic_depth"})
_WITHOUT_VALUES = frozenset({"size", "dim", "numel", "__get__", "new_tensor"})

_SPARED: Mapping[Callable[..., Any], Callable[..., Tensor]] = {  # Any: as torch has it
    Tensor.normal_: lambda weight, *_, **__: weight,
    Tensor.uniform_: lambda weight, *_, **__: weight,
    nn.functional.batch_norm: lambda value, *_, **__: torch.empty_like(value),
    nn.functional.linear: lambda value, weight, *_, **__: value.new_empty(
        (*value.shape[:-1], weight.shape[0])
    ),
    Tensor.mean: Tensor.sum,
}
"""What torch would import its compiler for on the `meta` device -> what gives the same shape."""


def operations_of_network(network: nn.Module, image_size: tuple[int, int]) -> list[Operation]:
    """The operations that *network* runs on one image of *image_size*, in order.

    Parameters may lie on the `meta` device. The network is set to evaluation.
    """
    network.eval()
    names = {id(value): name for name, value in network.named_parameters()}
    names |= {id(value): name for name, value in network.named_buffers()}
    device = next((value.device for value in network.parameters()), torch.device("meta"))
    recorder = _Recorder(names)
    image = torch.zeros((1, 3, *image_size), device=device)
    recorder.know(image, IMAGE)
    with torch.no_grad(), WithoutValues(), recorder:
        network(image)
    return recorder.operations


class WithoutValues(TorchFunctionMode):
    """While it lasts, the `meta` device computes shapes without importing torch's compiler.

    That would double the time of `loupe inspect shapes`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],  # Any: as torch has it
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What *func* gives, or on the `meta` device a tensor of its shape."""
        spared = _SPARED.get(func) if args and isinstance(args[0], Tensor) else None
        if spared and args[0].device.type == "meta":
            return spared(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Recorder(TorchFunctionMode):
    """Records each call of torch that reads a value made from the image."""

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._parameters = parameters
        self._values: dict[int, str] = {}
        # Tensors are told by id, so none may go while others are recorded.
        self._kept: list[Tensor] = []

    def know(self, value: Tensor, name: str) -> None:
        self._values[id(value)] = name
        self._kept.append(value)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flat = [*_flat(args), *_flat(tuple(kwargs.values()))]
        inputs = [value for value in flat if id(value) in self._values]
        name = (resolve_name(func) or func.__name__).rpartition(".")[2]
        if not inputs or not isinstance(result, Tensor) or name in _WITHOUT_VALUES:
            return result
        if name in _PASSED_THROUGH:
            self.know(result, self._values[id(inputs[0])])
            return result
        weights = [value for value in flat if id(value) in self._parameters]
        self._record(name.rstrip("_"), args, kwargs, inputs, weights, result)
        return result

    def _record(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inputs: list[Tensor],
        weights: list[Tensor],
        result: Tensor,
    ) -> None:
        learned = [self._parameters[id(value)] for value in weights]
        output = f"{name}_{len(self.operations)}"
        self.operations.append(
            Operation(
                kind=_KINDS.get(name, name.title().replace("_", "")),
                name=learned[0].rpartition(".")[0] if learned else output,
                inputs=tuple(self._values[id(value)] for value in inputs),
                output=output,
                input_shapes=tuple(tuple(value.shape) for value in inputs),
                shape=tuple(result.shape),
                weight_shape=tuple(max(weights, key=Tensor.numel).shape) if weights else (),
                parameters=sum(
                    prod(value.shape) for value in weights if isinstance(value, nn.Parameter)
                ),
                attributes=_attributes(name, args, kwargs, result),
            )
        )
        self.know(result, output)


def _flat(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in _flat(value)]
    return []


def _attributes(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
) -> dict[str, object]:
    """The attributes of the call *name*, named and arranged as in ONNX."""

    def given(position: int, keyword: str, default: Any) -> Any:
        return kwargs.get(keyword, args[position] if len(args) > position else default)

    if name == "conv2d":
        padding = given(4, "padding", 0)
        return {
            "strides": _pair(given(3, "stride", 1)),
            **({"auto_pad": b"SAME_UPPER"} if padding == "same" else {}),
            "pads": _pair(0 if isinstance(padding, str) else padding) * 2,
            "dilations": _pair(given(5, "dilation", 1)),
            "group": given(6, "groups", 1),
        }
    if name in {"max_pool2d", "avg_pool2d"}:
        kernel = given(1, "kernel_size", None)
        dilation = given(4, "dilation", 1) if name == "max_pool2d" else 1
        return {
            "kernel_shape": _pair(kernel),
            "strides": _pair(given(2, "stride", None) or kernel),
            "pads": _pair(given(3, "padding", 0)) * 2,
            "dilations": _pair(dilation),
            "ceil_mode": int(given(5 if name == "max_pool2d" else 4, "ceil_mode", False)),
        }
    if name == "permute":
        order = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return {"perm": [axis % result.dim() for axis in order]}
    if name == "mean":
        axes = given(1, "dim", None)
        return {"axes": list(axes) if isinstance(axes, (tuple, list)) else [axes]}
    if name == "layer_norm":
        return {"axis": -len(given(1, "normalized_shape", ()))}
    if name == "softmax":
        return {"axis": given(1, "dim", -1)}
    if name == "pad":
        left, right, top, bottom = (*given(1, "pad", ()), 0, 0, 0, 0)[:4]
        return {"pads": [0, 0, top, left, 0, 0, bottom, right]}
    return {}


def _pair(value: Any) -> list[int]:
    return [int(item) for item in value] if isinstance(value, (tuple, list)) else [int(value)] * 2

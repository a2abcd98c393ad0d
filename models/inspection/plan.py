"""A plan of sizes checked against a network, and what depthwise-separable convolutions save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod

from models.errors import BadRequest
from models.inspection.layers import Layer


@dataclass(frozen=True)
class Saving:
    """What depthwise-separable convolutions cost beside standard ones of the same shape."""

    pairs: int
    """Depthwise convolutions that a 1x1 convolution follows."""
    separable: int
    """Multiply-adds of both."""
    standard: int
    """Multiply-adds of standard convolutions with the same kernel, inputs and outputs."""


def spatial_sizes(layers: Iterable[Layer], start: int) -> list[tuple[int, Layer | None]]:
    """The height of the image, *start*, and each new height on the way to the answer.

    With the layer that made it. Gates, which see the whole image, do not count.
    """
    sizes: list[tuple[int, Layer | None]] = [(start, None)]
    for layer in layers:
        if layer.field is None or layer.field.whole or len(layer.shape) != 3:
            continue
        height = layer.shape[1]
        if height < sizes[-1][0]:
            sizes.append((height, layer))
    return sizes


def check_plan(layers: Sequence[Layer], start: int, plan: Sequence[int]) -> None:
    """Compare the sizes that the network has with *plan*, such as 224, 112, 56, 28.

    Raises `BadRequest` that names the first layer that departs, and its formula.
    """
    sizes = spatial_sizes(layers, start)
    for step, expected in enumerate(plan):
        if step == len(sizes):
            raise BadRequest(
                f"the plan has {len(plan)} sizes; the network has {len(sizes)}:"
                f" {', '.join(str(size) for size, _ in sizes)}"
            )
        size, layer = sizes[step]
        if size == expected:
            continue
        if layer is None:
            raise BadRequest(
                f"the plan begins with {expected}; the image has {size} pixels. Give --input"
                f" {expected}"
            )
        raise BadRequest(f"size {step + 1} of the plan is {expected}. {_departure(layer)}")


def separable_saving(layers: Sequence[Layer]) -> Saving:
    """What the depthwise-separable convolutions of *layers* cost, and what standard ones would.

    Source: Howard et al. 2017, "MobileNets", section 3.1: 1/outputs + 1/kernel².
    """
    convolutions = [layer for layer in layers if layer.kernel and "convolution" in layer.kind]
    pairs = [
        (first, second)
        for first, second in _following(convolutions)
        if first.kind == "depthwise convolution" and second.kernel == (1, 1) and second.groups == 1
    ]
    return Saving(
        pairs=len(pairs),
        separable=sum(first.multiply_adds + second.multiply_adds for first, second in pairs),
        standard=sum(
            prod(second.shape) * first.shape[0] * prod(first.kernel or ())
            for first, second in pairs
        ),
    )


def _following(layers: Sequence[Layer]) -> Iterator[tuple[Layer, Layer]]:
    """Each convolution on a map, with the next on a map of the same size."""
    maps = [layer for layer in layers if not (layer.field and layer.field.whole)]
    return ((a, b) for a, b in pairwise(maps) if a.shape[1:] == b.shape[1:])


def _departure(layer: Layer) -> str:
    text = f"{layer.name} ({layer.kind} {layer.window}) gives {layer.shape[1]}"
    if layer.kernel is None or layer.stride is None:
        return text
    size = layer.input_shape[1]
    dilation = layer.dilation[0] if layer.dilation else 1
    kernel, stride = dilation * (layer.kernel[0] - 1) + 1, layer.stride[0]
    same, valid = ceil(size / stride), ceil(max(0, size - kernel + 1) / stride)
    return (
        f"{text}: {layer.formula}. With padding 'same' it would give {same}, with 'valid' {valid}"
    )

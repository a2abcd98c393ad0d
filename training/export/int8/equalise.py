"""Channels of a value brought to like ranges, without changing what the network computes.

A value that is stored with one scale for all its channels loses the small ones. Where only linear
operators, ReLU and additions lie between those that make it and those that read it, each channel
can be divided by a number of its own, in the weights that make it, and multiplied by it in the
weights that read it. Source: Nagel et al. 2019, "Data-Free Quantization", section 4.1, for two
layers; and Xiao et al. 2023, "SmoothQuant", for weighing measured activations against weights.
Values that additions link, as the residual stream of a MobileNetV2 is, share their numbers.

ReLU6 cuts at the same height in every channel, so that nothing can be scaled through it: such a
value is left as it is. It needs it least, since its range ends at 6 in every channel.

Letters used in shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from training.export.int8.graph import SCORES, Array, Graph, attribute, is_depthwise
from training.export.int8.statistics import Spread

MOST = 64.0
"""No channel is moved by more than this: one that is nearly silent on the calibration images may not be so on others."""


@dataclass
class Stream:
    """Values that have the same channels, the convolutions that write them, and those that read
    them.
    """

    values: set[str] = field(default_factory=set)
    writers: list[NodeProto] = field(default_factory=list)
    readers: list[NodeProto] = field(default_factory=list)


def equalise(graph: Graph, spreads: Mapping[str, Spread]) -> int:
    """Equalise every stream of *graph* that can be, by what *spreads* measured; how many there
    were. The measurements no longer hold then.
    """
    streams = find_streams(graph)
    for stream in streams:
        _scale(graph, stream, _factors(graph, stream, spreads))
    return len(streams)


def find_streams(graph: Graph) -> list[Stream]:
    """Every group of linked values that convolutions alone write and read, in the order of the
    graph.
    """
    streams, seen = [], set[str]()
    for node in graph.needed_for(SCORES):
        if node.op_type != "Conv" or node.output[0] in seen:
            continue
        stream = Stream()
        sound = _follow(graph, node.output[0], stream)
        seen |= stream.values
        if sound and stream.readers:
            streams.append(stream)
    return streams


def _follow(graph: Graph, value: str, stream: Stream) -> bool:
    """Collect what *value* is linked with into *stream*; whether each link lets a channel be
    scaled.
    """
    open_values, sound = [value], True
    while open_values:
        name = open_values.pop()
        if name in stream.values:
            continue
        stream.values.add(name)
        maker = graph.maker(name)
        if name in graph.outputs or maker is None:
            return False
        if _writes(graph, maker):
            stream.writers.append(maker)
        elif maker.op_type in ("Relu", "Add"):
            open_values += maker.input
        else:
            sound = False
        for reader in graph.readers(name):
            if _reads(graph, reader, name):
                stream.readers.append(reader)
            elif reader.op_type in ("Relu", "Add"):
                open_values += reader.output
            else:
                sound = False
    return sound


def _writes(graph: Graph, node: NodeProto) -> bool:
    return (
        node.op_type == "Conv"
        and graph.weight(node) is not None
        and len(graph.readers(node.input[1])) == 1
    )


def _reads(graph: Graph, node: NodeProto, value: str) -> bool:
    weight = graph.weight(node)
    if (
        node.op_type != "Conv"
        or weight is None
        or node.input[0] != value
        or len(graph.readers(node.input[1])) != 1
    ):
        return False
    return attribute(node, "group", 1) == 1 or is_depthwise(node, weight)


def _factors(graph: Graph, stream: Stream, spreads: Mapping[str, Spread]) -> Array:
    """What each channel is divided by: it balances the channel's range against the largest weight
    that reads it, relative to the others.

    A depthwise weight has a scale of its own for each channel, so that it bears any factor; then
    the range alone counts.
    """
    high_C = np.max([spreads[name].high_C for name in stream.values if name in spreads], axis=0)
    dense = [
        weight
        for node in stream.readers
        if (weight := graph.weight(node)) is not None and not is_depthwise(node, weight)
    ]
    silent_C = high_C < high_C.max() * 1e-6
    # Each reader by itself has one scale for each output channel: a large weight in it costs the
    # small ones.
    pull_C = np.max([_pull(weight) for weight in dense], axis=0) if dense else np.ones_like(high_C)
    factor_C = (
        np.sqrt(np.maximum(high_C, 1e-12) / np.maximum(pull_C, 1e-12))
        if dense
        else np.maximum(high_C, 1e-12)
    )
    factor_C = (
        factor_C / np.exp(np.mean(np.log(factor_C[~silent_C])))
        if not silent_C.all()
        else np.ones_like(high_C)
    )
    return np.where(silent_C, 1.0, np.clip(factor_C, 1.0 / MOST, MOST)).astype(np.float32)


def _pull(weight: Array) -> Array:
    """How large the weights are that read each input channel, relative to the largest of the same
    output channel.
    """
    magnitude = np.abs(weight).max(axis=tuple(range(2, weight.ndim)))
    relative = magnitude / np.maximum(magnitude.max(axis=1, keepdims=True), 1e-12)
    found: Array = relative.max(axis=0)
    return found


def _scale(graph: Graph, stream: Stream, factor_C: Array) -> None:
    for node in stream.writers:
        weight, bias_C = graph.weight(node), graph.bias(node)
        assert weight is not None
        graph.set_constant(node.input[1], weight / factor_C.reshape(-1, 1, 1, 1))
        if bias_C is not None:
            graph.set_constant(node.input[2], bias_C / factor_C)
    for node in stream.readers:
        weight = graph.weight(node)
        assert weight is not None
        axis = 0 if is_depthwise(node, weight) else 1
        graph.set_constant(
            node.input[1], weight * factor_C.reshape((-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1))
        )

"""The gradient of the loss of one photo, layer by layer, and what each pooling passes back.

Letters used in shapes: K classes, C channels, h and w cells of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import BadRequest
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.layers import Layer
from models.networks.onnx_in_torch import OnnxNetwork
from training.inside.gradients import LOGITS
from training.inside.subject import InspectedNetwork, class_index, photo_pixels

ANSWER = "probabilities"
POOLINGS_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class LayerFlow:
    """How strongly the loss depends on one layer."""

    layer: str
    kind: str
    output_norm: float
    """Length of the gradient with respect to all values that the layer gives."""
    weight_norm: float | None
    """With respect to its weights and bias; None: it has none."""


@dataclass(frozen=True, kw_only=True)
class PoolingFlow:
    """What one pooling passes back, on the channel where most comes back."""

    layer: str
    kind: str
    channel: int
    input_hw: NDArray[np.float32]
    arrives_hw: NDArray[np.float32]
    """The gradient at the pooling's output."""
    passed_hw: NDArray[np.float32]
    """The gradient that the pooling alone passes to its input."""
    share: float
    """Cells of the input, over all channels, that get any of it, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What flows back from the loss of one photo."""

    label: str
    probability: float
    """Of the logits, as in training."""
    answered: float
    """What the model says: for a calibrated package, of the logits over its temperature."""
    loss: float
    """Cross-entropy for *label*, in nats."""
    pixels_HWC: NDArray[np.uint8]
    layers: tuple[LayerFlow, ...]
    poolings: tuple[PoolingFlow, ...]


def flow_back(subject: InspectedNetwork, image: Path, label: str | None) -> Flow:
    """The gradients of the cross-entropy of class *label*, or of the answer, for the photo *image*.

    Raises `BadRequest` for an unknown label, a graph without logits, or a loss that is 0 for all
    that numbers can tell, `PackageError` for an operation without a gradient, and `RequestError`
    for an image that cannot be used.
    """
    assert subject.model is not None
    if LOGITS not in subject.outputs:
        raise BadRequest(
            f"{subject.title} has no output {LOGITS!r}, and the loss needs it. Packages of `loupe"
            " export` have one"
        )
    pixels_HWC = photo_pixels(image, subject.spec)
    network = OnnxNetwork(subject.model, [LOGITS])
    pixels = torch.from_numpy(pixels_HWC.astype(np.float32))[None].requires_grad_()
    values = network.trace(pixels, weights=True)
    # In float32 the loss of a sure answer is 0.
    scores_K = torch.log_softmax(values[LOGITS][0].double(), dim=0)
    index = int(scores_K.argmax()) if label is None else class_index(subject.labels, label)
    layers = [layer for layer in subject.layers if layer.output in values]
    loss = -scores_K[index]
    found = _gradients(loss, values, layers, network)
    if not any(float(part.abs().max()) for part in found.values()):
        raise BadRequest(
            f"the loss for {subject.labels[index]} is {float(loss.detach()):.3g}, so nothing flows"
            " back. Ask about another class with --class"
        )
    return Flow(
        label=subject.labels[index],
        probability=float(scores_K[index].detach().exp()),
        answered=_answered(subject.model, pixels_HWC, index),
        loss=float(loss.detach()),
        pixels_HWC=pixels_HWC,
        layers=tuple(_layer_flow(layer, found, network) for layer in layers),
        poolings=tuple(_poolings(layers, values, found)),
    )


def _answered(model: bytes, pixels_HWC: NDArray[np.uint8], index: int) -> float:
    session = session_with_outputs(model, [ANSWER])
    return float(feature_maps(session, pixels_HWC[np.newaxis])[0][0, index])


def _gradients(
    loss: Tensor, values: Mapping[str, Tensor], layers: Sequence[Layer], network: OnnxNetwork
) -> dict[str, Tensor]:
    """The gradient of *loss* with respect to each layer's output and what it reads, by name."""
    names = dict.fromkeys(
        name for layer in layers for name in (layer.output, *network.weights_of(layer.output))
    )
    wanted = {name: values[name] for name in names if values[name].requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(values[name]) if part is None else part
        for name, part in zip(wanted, found, strict=True)
    }


def _layer_flow(layer: Layer, found: Mapping[str, Tensor], network: OnnxNetwork) -> LayerFlow:
    weights = [
        found[name] for name in network.weights_of(layer.output) if _learns(layer) and name in found
    ]
    return LayerFlow(
        layer=layer.name,
        kind=layer.kind,
        output_norm=float(found[layer.output].norm()) if layer.output in found else 0.0,
        weight_norm=float(torch.stack([part.norm() for part in weights]).norm())
        if weights
        else None,
    )


def _poolings(
    layers: Sequence[Layer], values: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[PoolingFlow]:
    """Each pooling of the network's own way; what a gate pools is left out."""
    by_name = {layer.name: layer for layer in layers}
    maps = [layer for layer in layers if len(layer.shape) == 3 and not _sees_all(layer)]
    last = layers.index(maps[-1]) if maps else -1
    flows = []
    for place, layer in enumerate(layers):
        source = by_name.get(layer.inputs[0]) if layer.inputs else None
        if "pooling" not in layer.kind or source is None or len(source.shape) != 3:
            continue
        if _sees_all(layer) and place < last:
            continue
        flows.append(_pooling(layer, source, values, found))
    return flows[:POOLINGS_SHOWN]


def _pooling(
    layer: Layer, source: Layer, values: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> PoolingFlow:
    before, after, arrives = values[source.output], values[layer.output], found[layer.output]
    [passed] = torch.autograd.grad(after, before, grad_outputs=arrives, retain_graph=True)
    maps = [_channels_first(part.detach(), source) for part in (before, passed)]
    arrives_Chw = (
        _channels_first(arrives, layer)
        if arrives.dim() == 4
        else arrives.reshape(layer.shape[0], 1, 1)
    )
    channel = int(arrives_Chw.abs().amax(dim=(1, 2)).argmax())
    return PoolingFlow(
        layer=layer.name,
        kind=layer.kind,
        channel=channel,
        input_hw=maps[0][channel].numpy(),
        arrives_hw=arrives_Chw[channel].numpy(),
        passed_hw=maps[1][channel].numpy(),
        share=float((maps[1] != 0).float().mean()),
    )


def _channels_first(value: Tensor, layer: Layer) -> Tensor:
    """The map [C,h,w] of the only image of *value*."""
    channels_last = layer.field is not None and layer.field.spatial == (1, 2)
    return value[0].permute(2, 0, 1) if channels_last else value[0]


def _learns(layer: Layer) -> bool:
    """It has weights; the limits of a ReLU6 and the statistics of pixels are none."""
    return layer.multiply_adds > 0 or "normalisation" in layer.kind


def _sees_all(layer: Layer) -> bool:
    return layer.field is not None and layer.field.whole

"""How strongly one photo would change each layer, if it had another label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.errors import PackageError
from models.inspection.layers import Layer
from models.networks.onnx_in_torch import OnnxNetwork
from training.inside.gradients import LOGITS
from training.inside.subject import InspectedNetwork


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The pull of one photo on the layers of a network."""

    label: str
    """The label that the photo would have: the second answer."""
    index: int
    """The place of that label."""
    loss: float
    """Cross-entropy for that label."""
    pulls: tuple[tuple[Layer, float], ...]
    """A layer with weights, and the size of its gradient divided by the size of its weights."""


def training_step(
    subject: InspectedNetwork, pixels_HWC: NDArray[np.uint8]
) -> tuple[TrainingStep | None, str]:
    """What training on *pixels_HWC* with the second answer as its label would pull at.

    Or None, and the reason why this cannot be told.
    """
    weights = _weights(subject)
    assert subject.model is not None
    if LOGITS not in subject.outputs or len(subject.labels) == 1:
        return None, f"This graph has no output {LOGITS!r} of two classes or more to start from."
    if not weights:
        return None, "This model's weights are whole numbers (int8). Training uses float weights."
    try:
        network = OnnxNetwork(subject.model, [LOGITS, *(name for _, name in weights)])
    except PackageError as error:
        return None, f"{error}."
    photo = torch.from_numpy(pixels_HWC.astype(np.float32))[None]
    with torch.no_grad():
        logits_NK, *held = network(photo)
    second = int(logits_NK[0].topk(2).indices[1])
    # The tensors are the network's own, so that the next run records them.
    for weight in held:
        weight.requires_grad_()
    loss = F.cross_entropy(network(photo)[0], torch.tensor([second]))
    gradients = torch.autograd.grad(loss, held)
    step = TrainingStep(
        label=subject.labels[second] if subject.labels else str(second),
        index=second,
        loss=float(loss.detach()),
        pulls=tuple(
            (layer, float(gradient.norm() / weight.detach().norm().clamp(min=1e-12)))
            for (layer, _), weight, gradient in zip(weights, held, gradients, strict=True)
        ),
    )
    return step, ""


def _weights(subject: InspectedNetwork) -> list[tuple[Layer, str]]:
    """The convolutions and linear layers whose weights are floats of the graph, and their names."""
    assert subject.model is not None
    graph = onnx.ModelProto.FromString(subject.model).graph
    floats = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2
    }
    made = {name: node for node in graph.node for name in node.output}
    found = []
    for layer in subject.layers:
        node = made.get(layer.output)
        if layer.multiply_adds and node is not None and node.input[1] in floats:
            found.append((layer, node.input[1]))
    return found

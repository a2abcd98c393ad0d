"""One plain sentence for each layer: what it does with what it gets."""

from __future__ import annotations

from models.inspection.layers import Layer

PLAIN = {
    "ReLU": "Values below 0 become 0; the others stay.",
    "ReLU6": "Values below 0 become 0, and values above the upper bound become that bound.",
    "hard-swish": "Each value is scaled by how large it is: strong ones stay, weak ones vanish.",
    "hard-sigmoid": "Each value becomes a share from 0 to 1, along straight lines.",
    "SiLU": "Each value is multiplied by its sigmoid: strong ones stay, weak ones vanish.",
    "GELU": "Each value is multiplied by its rank in a normal distribution: weak ones vanish.",
    "leaky ReLU": "Values below 0 are made small; the others stay.",
    "sigmoid": "Each value becomes a share from 0 to 1.",
    "softmax": "The scores become probabilities that add up to 1.",
    "add": "Two results are added cell by cell: a shortcut lets the earlier one through.",
    "subtract": "One value is subtracted from another, cell by cell.",
    "multiply": "Values are multiplied cell by cell: a gate turns channels up or down.",
    "divide": "Values are divided cell by cell.",
    "concatenate": "The channels of several results are put side by side.",
    "pad": "Cells are added around the map.",
    "mean": "Values are averaged.",
    "batch normalisation": "Each channel is shifted and scaled by averages from training.",
    "layer normalisation": "The channels of a place are shifted and scaled to the same spread.",
    "group normalisation": "Groups of channels are shifted and scaled to the same spread.",
    "instance normalisation": "Each channel of the image is shifted and scaled to one spread.",
    "global average pooling": "Each channel's map becomes one number, its average.",
}
"""Kinds of layers whose sentence needs no number."""


def sentence(layer: Layer) -> str:
    """What *layer* does, in one sentence."""
    if "convolution" in layer.kind:
        return _convolution(layer)
    if layer.kind == "max pooling" and layer.kernel:
        return f"The strongest value of each {_by(layer.kernel)} window is kept: {_change(layer)}."
    if layer.kind == "average pooling" and layer.kernel:
        return f"Each {_by(layer.kernel)} window becomes its average: {_change(layer)}."
    if layer.kind == "average pooling":
        return f"Windows become their averages: {_change(layer)}."
    if layer.kind == "linear":
        return f"Each of {layer.shape[-1]:,} outputs is a weighted sum of all inputs."
    return PLAIN.get(layer.kind, f"The operation {layer.kind} of ONNX.")


def _convolution(layer: Layer) -> str:
    assert layer.kernel
    filters, given = layer.shape[0], layer.input_shape[0]
    if layer.kernel == (1, 1) and layer.groups == 1:
        return f"At each place, {filters} mixtures of {given} channels are made: {_change(layer)}."
    if layer.kind == "depthwise convolution":
        what = f"A filter of {_by(layer.kernel)} cells slides over each channel by itself"
    elif layer.groups > 1:
        what = (
            f"{filters} filters of {_by(layer.kernel)} cells see {given // layer.groups} channels"
        )
    else:
        what = f"{filters} filters of {_by(layer.kernel)} cells see all {given} channels"
    return f"{what}: {_change(layer)}."


def _change(layer: Layer) -> str:
    before, after = layer.input_shape[1:], layer.shape[1:]
    if before == after or len(before) != len(after):
        return f"the map has {_by(after)} cells" if after else "one number is left"
    return f"{_by(before)} cells become {_by(after)}"


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))

"""Weights of torchvision's and timm's networks, by the network's name. Nothing is unpickled.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

import difflib
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor as TorchTensor
from torch import nn

from models.errors import ConfigError, ImportRefused
from models.networks.foreign import from_timm
from models.networks.foreign.from_timm import TIMM
from models.networks.inputs import Inputs, inputs_of_timm, inputs_of_torchvision
from models.networks.vision import vision
from models.networks.weights import state_inside
from training.export.onnx_file import first_line, quiet_exporter
from training.importing.declared import Declared
from training.importing.foreign import Answers, Foreign, Tensor
from training.importing.onnx_graph import tidied
from training.importing.sources.onnx_model import sha256_of

PREFIXES = re.compile(r"^(module\.|model\.|_orig_mod\.|backbone\.)+")
"""What wrappers of torch, Lightning and compilers put before each name."""
OPSET = 18
USUAL_CLASSES = 1000


def torch_weights(path: Path, *, network: str | None) -> Foreign:
    """The network *network* with the weights in *path*.

    Raises `ConfigError` without a network that is known, `ImportRefused` for weights that are not
    its own.
    """
    if network is None:
        raise ConfigError(
            f"{path} holds weights alone; say whose with --network, as in --network resnet18"
        )
    state = read_state(path.read_bytes(), origin=str(path))
    with torch.device("meta"):
        plan, _ = _made(network, USUAL_CLASSES)
    module, declared = _made(network, _classes(plan, state))
    load_state(module, state, origin=f"{path} for {network}")
    side = declared.size if isinstance(declared.size, int) else 224
    return Foreign(
        kind="timm" if network.startswith(TIMM) else "torchvision",
        name=path.name,
        network=network,
        encoded=exported(module, (side, side), origin=str(path)),
        sha256=sha256_of(path),
        runtime="torch",
        answers=torch_answers(module),
        declared=declared,
        notes=(f"as {network}'s published weights want it; --preprocess says otherwise",),
    )


def read_state(content: bytes, *, origin: str) -> dict[str, TorchTensor]:
    """Name -> tensor of a safetensors file or a `.pth`, without the names of wrappers.

    Raises `ImportRefused` for anything that holds more than tensors.
    """
    state: Any  # Any: a checkpoint may be anything
    try:
        state = (
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not origin.endswith(".safetensors")
            else load_safetensors(content)
        )
    except Exception as error:
        raise ImportRefused(
            f"{origin} cannot be read as weights: it is damaged, or holds code or whole objects,"
            " and nothing is unpickled here. Save `model.state_dict()` alone, best as .safetensors,"
            " or export the model to ONNX"
        ) from error
    state = state_inside(state)
    if not isinstance(state, Mapping) or not state:
        raise ImportRefused(
            f"{origin} holds {type(state).__name__}, and no mapping of names to tensors; save"
            " `model.state_dict()`"
        )
    tensors = {PREFIXES.sub("", str(key)): value for key, value in state.items()}
    return {key: value for key, value in tensors.items() if isinstance(value, TorchTensor)}


def load_state(module: nn.Module, state: Mapping[str, TorchTensor], *, origin: str) -> None:
    """Fill *module* with *state*. Raises `ImportRefused` with the names that differ."""
    expected = module.state_dict()
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - state.keys() - counters)
    extra = sorted(key for key in state.keys() - expected.keys() if not key.startswith("aux"))
    shaped = sorted(
        f"{key} {list(state[key].shape)} for {list(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if expected[key].shape != state[key].shape
    )
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", extra), ("of another shape", shaped))
        if names
    ]
    if parts:
        raise ImportRefused(
            f"weights {origin} do not fit: {'; '.join(parts)}. Is it another network?"
        )
    module.load_state_dict(
        {key: state.get(key, value) for key, value in expected.items()}, strict=True
    )
    module.eval()


def exported(module: nn.Module, size: tuple[int, int], *, origin: str) -> bytes:
    """*module*, which takes float32 [N,3,H,W], as ONNX. Raises `ImportRefused`.

    Where torch's new exporter gives up, the older one traces the network.
    """
    example = torch.zeros((2, 3, *size))
    try:
        with quiet_exporter():
            try:
                model = _by_dynamo(module, example)
            except Exception:  # noqa: BLE001 - exporters raise anything, and there is another one
                model = _by_tracing(module, example)
    except Exception as error:
        raise ImportRefused(
            f"{origin}: torch cannot export this network to ONNX ({first_line(error)}); export it"
            " yourself, and import the .onnx"
        ) from error
    encoded: bytes = tidied(model, origin=origin).SerializeToString()
    return encoded


def _by_dynamo(module: nn.Module, example: TorchTensor) -> onnx.ModelProto:
    # Its reports of what it cannot export are no news: the older exporter is next.
    logging.disable(logging.ERROR)
    try:
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            input_names=["input"],
            output_names=["scores"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    finally:
        logging.disable(logging.NOTSET)
    assert program is not None
    return program.model_proto


def _by_tracing(module: nn.Module, example: TorchTensor) -> onnx.ModelProto:
    stream = io.BytesIO()
    torch.onnx.export(
        module,
        (example,),
        stream,  # type: ignore[arg-type]  # a stream is taken, and only its annotation knows none
        dynamo=False,
        dynamic_axes={"input": {0: "N"}, "scores": {0: "N"}},
        input_names=["input"],
        output_names=["scores"],
        opset_version=OPSET,
    )
    model: onnx.ModelProto = onnx.ModelProto.FromString(stream.getvalue())
    return model


def torch_answers(module: nn.Module) -> Answers:
    """What *module* itself gives."""

    def ask(inputs: Tensor) -> np.ndarray:
        with torch.inference_mode():
            scores: TorchTensor = module(torch.from_numpy(inputs))
        return scores.float().numpy()

    return ask


def _classes(plan: nn.Module, state: Mapping[str, TorchTensor]) -> int:
    """Classes of the last layer, which comes last in *plan*; files have an order of their own."""
    last = list(plan.state_dict())[-1]
    return len(state[last]) if last in state and state[last].ndim else USUAL_CLASSES


def _made(network: str, classes: int) -> tuple[nn.Module, Declared]:
    """The network with random weights, and how its published weights want images."""
    if network.startswith(TIMM):
        return _of_timm(network, classes)
    known = vision.list_models(module=vision)
    if network not in known:
        near = difflib.get_close_matches(network, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"unknown network {network!r}.{hint} Names are torchvision's, such as resnet18, or"
            " timm's, such as timm:resnet18"
        )
    options = {"init_weights": False} if network in ("googlenet", "inception_v3") else {}
    if options:
        options["aux_logits"] = False
    module = vision.get_model(network, weights=None, num_classes=classes, **options)
    # The first published weights: those that most people fine-tune from.
    first = next(iter(vision.get_model_weights(network)), None)
    return module, Declared() if first is None else _declared(inputs_of_torchvision(first))


def _declared(inputs: Inputs) -> Declared:
    stretched = inputs.resize == "stretch"
    return Declared(
        size=inputs.image_size,
        resize=inputs.resize,
        resize_size=None if stretched else inputs.resize_size(inputs.image_size),
        filter=inputs.filter,
        range="0..1",
        mean=inputs.mean,
        std=inputs.std,
    )


def _of_timm(name: str, classes: int) -> tuple[nn.Module, Declared]:
    found = from_timm.config(name)
    module = from_timm.timm_models().create_model(from_timm.bare(name), num_classes=classes)
    return module, _declared(inputs_of_timm(found))

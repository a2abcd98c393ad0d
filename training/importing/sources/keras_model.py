"""Keras models, through Keras 3's own export to ONNX on torch."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ConfigError, ImportRefused
from training.export.onnx_file import quiet_exporter
from training.importing.declared import Declared
from training.importing.foreign import Answers, Foreign, Tensor
from training.importing.onnx_graph import read_onnx
from training.importing.sources.onnx_model import sha256_of
from training.settings import choose_torch_for_keras

RESCALES = ("Rescaling", "Normalization")
"""Layers that show that the network takes pixels of 0 to 255."""


def keras_model(path: Path) -> Foreign:
    """The model in *path*, `.keras` or `.h5`.

    Raises `ConfigError` without Keras, `ImportRefused` for models with code in them.
    """
    model = _loaded(path)
    rescales = any(type(layer).__name__ in RESCALES for layer in _layers(model))
    # Keras exports only what was called once.
    _answers(model)(np.zeros((1, *_free_sizes(model)), dtype=np.float32))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        try:
            with quiet_exporter():
                model.export(str(file), format="onnx", verbose=False)
        except Exception as error:
            first = next((line for line in str(error).splitlines() if line.strip()), "no reason")
            raise ImportRefused(f"Keras cannot export {path} to ONNX: {first}") from error
        encoded = read_onnx(file).SerializeToString()
    return Foreign(
        kind="keras",
        name=path.name,
        network=str(model.name),
        encoded=encoded,
        sha256=sha256_of(path),
        runtime="Keras",
        answers=_answers(model),
        declared=Declared(range="0..255", mean=0.0, resize="stretch") if rescales else Declared(),
        notes=(
            ("it rescales pixels by itself, so it gets them as they are (0 to 255)",)
            if rescales
            else ()
        ),
    )


def saved_model(folder: Path) -> Foreign:
    """Never: TensorFlow's SavedModel is a graph of TensorFlow's own. Raises `ImportRefused`."""
    raise ImportRefused(
        f"{folder} is a SavedModel of TensorFlow; save the model as .keras, or convert it with"
        f" `python -m tf2onnx.convert --saved-model {folder} --output model.onnx` and import that"
    )


def _loaded(path: Path) -> Any:  # Any: Keras is optional
    choose_torch_for_keras()
    try:
        import keras
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path} is a Keras model, which needs Keras 3; `pip install keras`"
        ) from error
    if keras.backend.backend() != "torch":
        raise ConfigError(
            f"Keras runs on {keras.backend.backend()} here, and Loupe exports with torch; set"
            " KERAS_BACKEND=torch"
        )
    try:
        return keras.saving.load_model(str(path), compile=False, safe_mode=True)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "no reason")
        raise ImportRefused(
            f"Keras cannot load {path}: {first[:300]}. Layers with code of their own (Lambda) are"
            " not run here; export the model to ONNX where that code is"
        ) from error


def _free_sizes(model: Any) -> tuple[int, ...]:  # Any: Keras is optional
    """The sizes of an input without the batch; 224 where they are free."""
    if isinstance(model.input_shape, list):
        raise ImportRefused(f"{model.name} has {len(model.input_shape)} inputs; expected one image")
    return tuple(size or 224 for size in model.input_shape[1:])


def _layers(model: Any) -> list[Any]:  # Any: Keras is optional
    """All layers, also those of models inside."""
    found = []
    for layer in getattr(model, "layers", []):
        found += [layer, *_layers(layer)]
    return found


def _answers(model: Any) -> Answers:  # Any: Keras is optional
    def ask(inputs: Tensor) -> np.ndarray:
        torch = sys.modules["torch"]
        with torch.inference_mode():
            scores = model(inputs, training=False)
        return np.asarray(scores.detach().cpu().numpy(), dtype=np.float32)

    return ask

"""A package of a small convolutional network: it has maps and receptive fields to see."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from models.package.manifest import GOLDEN_FOLDER, MODEL_FILE, TensorSpec
from models.package.manifest_file import read_manifest, record_files, write_manifest
from models.package.verify import write_golden
from models.pixels.preprocess import to_pixels
from tests.models.packages import MEAN, OPSET, STD, build_package, read_golden

WIDTHS = (8, 16)
"""Channels after each convolution. Each halves height and width."""


def build_conv_package(
    folder: Path,
    *,
    labels: Sequence[str],
    seed: int = 0,
    size: int = 32,
    abstain_threshold: float = 0.0,
) -> Path:
    """*folder*, made and filled with a package of *labels* whose network has two convolutions."""
    build_package(folder, labels=labels, seed=seed, size=size)
    model = _graph(classes=len(labels), size=size, rng=np.random.default_rng(seed))
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    _answer_golden_again(folder)
    manifest, cells = read_manifest(folder), size // 2 ** len(WIDTHS)
    shape = ("N", len(labels), cells, cells)
    outputs = tuple(
        one.model_copy(update={"shape": ("N", WIDTHS[-1])}) if one.name == "embedding" else one
        for one in manifest.outputs
    )
    update = {
        "outputs": (*outputs, TensorSpec(name="cam", dtype="float32", shape=shape)),
        "abstain_threshold": abstain_threshold,
        "architecture": manifest.architecture.model_copy(update={"embedding_size": WIDTHS[-1]}),
        "reference": manifest.reference.model_copy(update={"embedding_mean": (0.0,) * WIDTHS[-1]}),
        "files": record_files(folder),
    }
    write_manifest(folder, manifest.model_copy(update=update))
    return folder


def _answer_golden_again(folder: Path) -> None:
    session = ort.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    golden = []
    for image in read_golden(folder):
        pixels_NHWC = to_pixels(image.encoded, read_manifest(folder).preprocess)[np.newaxis]
        [probabilities_NK] = session.run(["probabilities"], {"image": pixels_NHWC})
        answers = tuple(map(float, probabilities_NK[0]))
        golden.append(image.model_copy(update={"probabilities": answers}))
    shutil.rmtree(folder / GOLDEN_FOLDER)
    write_golden(folder, golden, tolerance=1e-3)


def _graph(*, classes: int, size: int, rng: np.random.Generator) -> onnx.ModelProto:
    """uint8 `image` [N,H,W,3] -> two convolutions -> mean -> linear, with `cam` [N,K,H/4,W/4]."""
    cells = size // 2 ** len(WIDTHS)
    weights = {
        "mean": np.asarray(MEAN, dtype=np.float32) * 255,
        "std": np.asarray(STD, dtype=np.float32) * 255,
        "axes": np.asarray([2, 3], dtype=np.int64),
        "weight": rng.normal(size=(WIDTHS[-1], classes)).astype(np.float32),
        "bias": np.zeros(classes, dtype=np.float32),
        "cells": np.float32(cells * cells),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["raw"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["raw", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
        helper.make_node("Transpose", ["normalised"], ["turned"], perm=[0, 3, 1, 2]),
    ]
    before, value = 3, "turned"
    for number, width in enumerate(WIDTHS):
        scale = (2.0 / (9 * before)) ** 0.5
        filters = rng.normal(scale=scale, size=(width, before, 3, 3)).astype(np.float32)
        weights[f"features.{number}.weight"] = filters
        nodes += [
            helper.make_node(
                "Conv",
                [value, f"features.{number}.weight"],
                [f"features.{number}"],
                kernel_shape=[3, 3],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
            ),
            helper.make_node("Relu", [f"features.{number}"], [f"features.{number}.relu"]),
        ]
        before, value = width, f"features.{number}.relu"
    nodes += [
        helper.make_node("ReduceMean", [value, "axes"], ["embedding"], keepdims=0),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Transpose", [value], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["last", "weight"], ["pushed"]),
        helper.make_node("Transpose", ["pushed"], ["evidence"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["evidence", "cells"], ["cam"]),
    ]
    shapes = {
        "logits": ["N", classes],
        "probabilities": ["N", classes],
        "embedding": ["N", WIDTHS[-1]],
        "cam": ["N", classes, cells, cells],
    }
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="loupe-tests",
    )

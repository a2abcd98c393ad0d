"""A package that says int8, with or without its fp32 sibling.

The two have other weights, so that an answer tells which one gave it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort

from models.package.manifest import GOLDEN_FOLDER, SIBLING_FILE
from models.package.manifest_file import read_manifest, record_files, write_manifest
from models.package.verify import GoldenImage, write_golden
from models.pixels.preprocess import to_pixels
from tests.models.packages import build_graph, build_package, read_golden


def build_int8_package(folder: Path, *, cpu_class: str, sibling: bool = True) -> Path:
    """*folder*, made and filled with a package that was validated on *cpu_class*.

    Its graphs compute in fp32: only the rules are tested.
    """
    build_package(folder)
    if sibling:
        _add_sibling(folder)
    update = {"precision": "int8", "cpu_class": cpu_class, "files": record_files(folder)}
    write_manifest(folder, read_manifest(folder).model_copy(update=update))
    return folder


def spoil_golden(package: Path, *, sibling: bool = False) -> None:
    """Turn round the recorded answers of *package* (of its sibling), as if this machine computed
    something else.
    """
    images = read_golden(package)
    for_sibling = [
        image.sibling_probabilities[::-1]
        if sibling and image.sibling_probabilities
        else image.sibling_probabilities
        for image in images
    ]
    probabilities = [
        image.probabilities if sibling else image.probabilities[::-1] for image in images
    ]
    _rewrite_golden(
        package,
        [
            i.model_copy(update={"probabilities": p, "sibling_probabilities": s})
            for i, p, s in zip(images, probabilities, for_sibling, strict=True)
        ],
    )
    write_manifest(
        package, read_manifest(package).model_copy(update={"files": record_files(package)})
    )


def _add_sibling(folder: Path) -> None:
    manifest = read_manifest(folder)
    model = build_graph(
        classes=len(manifest.labels),
        size=manifest.preprocess.crop[0],
        rng=np.random.default_rng(99),
    ).SerializeToString()
    (folder / SIBLING_FILE).write_bytes(model)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = read_golden(folder)
    pixels_NHWC = np.stack([to_pixels(image.encoded, manifest.preprocess) for image in images])
    answers_NK = session.run(["probabilities"], {"image": pixels_NHWC})[0]
    _rewrite_golden(
        folder,
        [
            i.model_copy(update={"sibling_probabilities": tuple(map(float, answer_K))})
            for i, answer_K in zip(images, answers_NK, strict=True)
        ],
    )


def _rewrite_golden(folder: Path, images: list[GoldenImage]) -> None:
    shutil.rmtree(folder / GOLDEN_FOLDER)
    write_golden(folder, images, tolerance=1e-3)

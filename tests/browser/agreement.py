"""How often the page and the service give a photo the same answer."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.pixels.preprocess import to_pixels
from service.engine.classifier import Classifier

OPEN = """async () => {
  const { Classifier } = await import('./model.js');
  const { toPixels } = await import('./preprocess.js');
  const classifier = await Classifier.open();
  window.answer = async encoded => {
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
    const { predictions, timing_ms } = await classifier.classify(bytes, 1);
    let text = '';
    const pixels = await toPixels(bytes, classifier.spec);
    for (let at = 0; at < pixels.length; at += 8192)
        text += String.fromCharCode(...pixels.subarray(at, at + 8192));
    return { ...predictions[0], timing_ms, pixels: btoa(text) };
  };
}"""


@dataclass(frozen=True)
class Agreement:
    """Predictions of page and service on the same photos."""

    photos: int
    same_top1: int
    same_pixels: int
    """Photos whose preprocessed pixels are equal to the last bit."""
    max_probability_difference: float
    """Largest difference of the top-1 probability, if both give the same class."""
    preprocess_ms: tuple[float, ...]
    model_ms: tuple[float, ...]


def agreement(page: Any, address: str, *, package: Path, photos: Sequence[Path]) -> Agreement:
    """Classify *photos* with the page at *address* and with the classifier of *package*."""
    page.goto(address)
    page.evaluate(OPEN)
    service = Classifier.open(package, threads=1)
    same_top1, same_pixels, differences = 0, 0, [0.0]
    preprocess_ms, model_ms = [], []
    for photo in photos:
        encoded = photo.read_bytes()
        found = page.evaluate(
            "encoded => window.answer(encoded)", base64.b64encode(encoded).decode()
        )
        [expected] = service.classify([encoded], top_k=1)
        same_pixels += (
            base64.b64decode(found["pixels"])
            == to_pixels(encoded, service.model.manifest.preprocess).tobytes()
        )
        preprocess_ms.append(found["timing_ms"]["preprocess"])
        model_ms.append(found["timing_ms"]["model"])
        if found["index"] == expected.predictions[0].index:
            same_top1 += 1
            differences.append(abs(found["probability"] - expected.predictions[0].probability))
    return Agreement(
        len(photos),
        same_top1,
        same_pixels,
        float(np.max(differences)),
        tuple(preprocess_ms),
        tuple(model_ms),
    )

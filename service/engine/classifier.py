"""The classifier: turns encoded images into labelled answers. It knows no transport.

The service, batch scoring and tests share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import BadRequest, RequestError
from models.machine import threads_per_worker
from models.package.manifest import MANIFEST_FILE, ImageLimits, Manifest
from models.pixels.preprocess import to_pixels
from models.runtime.providers import Provider
from models.runtime.session import Model, open_model
from models.store.store import ModelRef, Store

FEW = 16
"""Up to so many classes are found one by one.

Five of a thousand take 9 microseconds so, and a sort of all takes 30."""


class Prediction(NamedTuple):
    """One class of an answer."""

    label: str
    index: int  # type: ignore[assignment]  # tuples have a method `index`
    """Position in the manifest's labels."""
    probability: float
    """Calibrated, 0 to 1."""


@dataclass(frozen=True)
class Classification:
    """The answer for one image, likeliest class first."""

    predictions: tuple[Prediction, ...]
    abstained: bool
    """The highest probability is below the manifest's abstain threshold."""


class Classifier:
    """A model that turns encoded images into classifications. Thread-safe."""

    def __init__(
        self, model: Model, *, name: str, version: int, limits: ImageLimits | None = None
    ) -> None:
        """*limits* of images; None takes the package's, or the defaults where those are wider."""
        self.model = model
        written = model.manifest.preprocess
        self.spec = written.widened() if limits is None else written.within(limits)
        """How images are prepared: the manifest's, with the limits of this machine."""
        self.name = name
        self.version = version

    @classmethod
    def open(
        cls,
        reference: str | Path,
        *,
        store: Path = Path("artifacts/store"),
        threads: int = 0,
        provider: Provider = "cpu",
        max_batch_size: int = 1,
        limits: ImageLimits | None = None,
    ) -> Classifier:
        """The classifier for a package folder, or for a model in *store*.

        *reference* is a folder, `name`, `name@alias` or `name:version`.
        *threads* are intra-op threads, 0 for all that the cgroup allows. Raises `UnknownModel`,
        `StoreError` or `PackageError`.
        """
        folder = Path(reference)
        # A package outside a store has no version. Its folder names it.
        ref = (
            ModelRef(name=folder.name, version=0, path=folder)
            if isinstance(reference, Path) or (folder / MANIFEST_FILE).is_file()
            else Store(store).resolve(reference)
        )
        warm = tuple(sorted({1, max_batch_size}))
        model = open_model(
            ref.path, threads=threads or threads_per_worker(1), provider=provider, warm_batches=warm
        )
        return cls(model, name=ref.name, version=ref.version, limits=limits)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the model's package."""
        return self.model.manifest

    def decode(self, encoded: bytes) -> NDArray[np.uint8]:
        """Pixels `uint8 [H,W,3]` of an encoded image, as the model wants them.

        Raises `RequestError`.
        """
        return to_pixels(encoded, self.spec)

    def answer(self, probabilities_K: NDArray[np.float32], *, top_k: int) -> Classification:
        """The *top_k* likeliest classes.

        Raises `BadRequest` if *top_k* is below 1; more than there are classes gives them all.
        """
        if top_k < 1:
            raise BadRequest(f"top_k is {top_k}; expected a whole number of 1 or more")
        labels = self.manifest.labels
        predictions = tuple(
            [
                Prediction(labels[index], index, float(probabilities_K[index]))
                for index in _likeliest(probabilities_K, top_k)
            ]
        )
        return Classification(
            predictions, abstained=predictions[0].probability < self.manifest.abstain_threshold
        )

    def classify(
        self, images: Sequence[bytes], *, top_k: int = 5
    ) -> list[Classification | RequestError]:
        """An answer for each image in order, or the error of one that cannot be used."""

        def try_decode(encoded: bytes) -> NDArray[np.uint8] | RequestError:
            try:
                return self.decode(encoded)
            except RequestError as error:
                return error

        decoded = [try_decode(encoded) for encoded in images]
        good = [pixels for pixels in decoded if not isinstance(pixels, RequestError)]
        rows = iter(self.model.run(np.stack(good))["probabilities"] if good else ())
        return [
            pixels if isinstance(pixels, RequestError) else self.answer(next(rows), top_k=top_k)
            for pixels in decoded
        ]


def _likeliest(probabilities_K: NDArray[np.float32], top_k: int) -> list[int]:
    """Indices of the *top_k* greatest, greatest first; of equals, the first one comes first."""
    if top_k > FEW:
        return [int(index) for index in np.argsort(-probabilities_K, kind="stable")[:top_k]]
    rest_K, found = probabilities_K.copy(), []
    for _ in range(min(top_k, len(rest_K))):
        found.append(int(rest_K.argmax()))
        rest_K[found[-1]] = -np.inf
    return found

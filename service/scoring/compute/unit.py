"""From a unit of items to its record: read, decode, run.

Pure work, the same in a thread and in a Ray task.

Letters used in shapes: N images of a unit that could be decoded, H and W pixels, K classes, D
embedding features, k of top-k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.errors import RequestError
from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels
from models.runtime.drift_signals import brightness, embedding_distance, histogram, sharpness
from models.runtime.session import Model
from service.scoring.input.items import Fault, Item, Unit
from service.scoring.output.tally import Tally, kinds_of

Floats = NDArray[np.float32]
CAREFUL_UNITS, CAREFUL_SAMPLES, SAMPLES = 16, 16, 4
"""Brightness and sharpness are measured on so many images of each unit, more on those of the first: on all they would
cost processor time that the network needs. How much was not measured."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a record must hold."""

    top_k: int = 5
    probabilities: bool = False
    embedding: bool = False
    sha256: bool = False
    batch_size: int = 16


@dataclass(frozen=True)
class Decoded:
    """A unit's pixels, and what became of each item."""

    pixels_NHWC: NDArray[np.uint8]
    kept: tuple[int, ...]
    """Positions in the unit of the N images."""
    faults: tuple[tuple[int, Fault], ...]
    sha256: tuple[str, ...] = ()
    """Of the N images' files, if wanted."""


@dataclass
class Record:
    """What the journal keeps of a unit."""

    unit: int
    first_row: int
    digest: str
    rows: list[tuple[int, Item]]
    """(row in the input, item) of the N images."""
    failed: list[tuple[int, Item, Fault]]
    arrays: dict[str, NDArray[np.float32] | NDArray[np.int32]]
    """`top_index` int32 [N,k], `top_probability` [N,k], and if wanted `probabilities` [N,K], `embedding` [N,D]."""
    sha256: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def decode_unit(
    unit: Unit, contents: Iterable[bytes | Fault], spec: PreprocessSpec, *, hashed: bool
) -> Decoded:
    """*contents*, one for each item of *unit* in order, as pixels."""
    kept, faults, pixels, digests = [], [], [], []
    for position, content in enumerate(contents):
        fault = content if isinstance(content, Fault) else None
        if not isinstance(content, Fault):
            try:
                pixels.append(to_pixels(content, spec))
            except RequestError as error:
                fault = Fault(error.code, str(error), was_read=True)
            else:
                kept.append(position)
                if hashed:
                    digests.append(hashlib.sha256(content).hexdigest())
        if fault is not None:
            faults.append((position, fault))
    pixels_NHWC = np.stack(pixels) if pixels else np.zeros((0, *spec.crop, 3), dtype=np.uint8)
    return Decoded(pixels_NHWC, tuple(kept), tuple(faults), tuple(digests))


def answer_unit(unit: Unit, decoded: Decoded, model: Model, wanted: Wanted) -> Record:
    """The record of *unit*.

    Batches are cut from its decodable images in order, so that the same unit always gives the same
    bits.
    """
    outputs = ["probabilities"]
    if wanted.embedding or "embedding" in model.answer_outputs:
        outputs.append("embedding")
    found = _run(decoded.pixels_NHWC, model, outputs, wanted.batch_size)
    probabilities_NK = found["probabilities"]
    top = min(wanted.top_k, probabilities_NK.shape[1])
    index_Nk = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :top].astype(np.int32)
    arrays: dict[str, NDArray[np.float32] | NDArray[np.int32]] = {
        "top_index": index_Nk,
        "top_probability": np.take_along_axis(probabilities_NK, index_Nk, axis=1),
    }
    arrays |= {
        name: found[name] for name in ("probabilities", "embedding") if getattr(wanted, name)
    }
    rows = [(unit.first_row + position, unit.items[position]) for position in decoded.kept]
    failed = [
        (unit.first_row + position, unit.items[position], fault)
        for position, fault in decoded.faults
    ]
    tally = _tally(unit, decoded, found, index_Nk, model)
    return Record(
        unit.index, unit.first_row, unit.digest, rows, failed, arrays, list(decoded.sha256), tally
    )


def _run(
    pixels_NHWC: NDArray[np.uint8], model: Model, outputs: Sequence[str], batch_size: int
) -> dict[str, Floats]:
    count = len(pixels_NHWC)
    if count == 0:
        sizes = {
            "probabilities": len(model.manifest.labels),
            "embedding": model.manifest.architecture.embedding_size,
        }
        return {name: np.zeros((0, sizes[name]), dtype=np.float32) for name in outputs}
    parts = [
        model.run(pixels_NHWC[start : start + batch_size], outputs)
        for start in range(0, count, batch_size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def _tally(
    unit: Unit,
    decoded: Decoded,
    found: dict[str, Floats],
    index_Nk: NDArray[np.int32],
    model: Model,
) -> Tally:
    confidence_N = found["probabilities"].max(axis=1, initial=0.0)
    samples = decoded.pixels_NHWC[: CAREFUL_SAMPLES if unit.index < CAREFUL_UNITS else SAMPLES]
    classes, counts = np.unique(index_Nk[:, 0], return_counts=True)
    codes: dict[str, int] = {}
    for _, fault in decoded.faults:
        codes[fault.code] = codes.get(fault.code, 0) + 1
    tally = Tally(
        scored=len(decoded.kept),
        abstained=int((confidence_N < model.manifest.abstain_threshold).sum()),
        classes={int(name): int(count) for name, count in zip(classes, counts, strict=True)},
        codes=codes,
        kinds=kinds_of(item.extra for item in unit.items),
    )
    reference = model.manifest.reference
    tally.signals["confidence"] = _counts(confidence_N, reference.confidence.edges)
    tally.signals["brightness"] = _counts(
        [brightness(pixels) for pixels in samples], reference.brightness.edges
    )
    tally.signals["sharpness"] = _counts(
        [sharpness(pixels) for pixels in samples], reference.sharpness.edges
    )
    mean_D = np.asarray(reference.embedding_mean, dtype=np.float32)
    # A manifest need not have a mean of just this size: then there is nothing to compare with.
    if "embedding" in found and found["embedding"].shape[1] == len(mean_D):
        distance_N = embedding_distance(found["embedding"], mean_D)
        tally.signals["embedding_distance"] = _counts(
            distance_N, reference.embedding_distance.edges
        )
    return tally


def _counts(values: Sequence[float] | Floats, edges: Sequence[float]) -> list[int]:
    return list(histogram(values, edges).counts)

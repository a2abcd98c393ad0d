"""One unit of items: decoded, run, and turned into its record.

The same functions run in a thread and in a Ray actor.

Letters used in shapes: N images of a unit that could be decoded, H and W pixels, K classes, D
embedding features, k of top-k.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.errors import RequestError
from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels
from models.runtime import drift_signals
from models.runtime.session import Model
from service.scoring.input.items import Fault, Item, Unit
from service.scoring.output.tally import Tally, kinds_of

FIRST_UNITS, FIRST_SAMPLES, SAMPLES = 16, 16, 4
"""Brightness and sharpness are measured on so many images of a unit, more in the first units.

On all images they would cost CPU time that the network needs. How much was not measured."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What a record holds, and in which batches the model runs."""

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
    """Of the N images' files, on demand."""


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
    """`top_index` int32 [N,k], `top_probability` [N,k], and on demand `probabilities` [N,K] and
    `embedding` [N,D]."""
    sha256: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def decode_unit(
    unit: Unit, contents: Iterable[bytes | Fault], spec: PreprocessSpec, *, hashed: bool
) -> Decoded:
    """*contents*, one for each item of *unit* in order, as pixels."""
    kept, faults, pixels, digests = [], [], [], []
    for position, content in enumerate(contents):
        if isinstance(content, Fault):
            faults.append((position, content))
            continue
        try:
            pixels.append(to_pixels(content, spec))
        except RequestError as error:
            faults.append((position, Fault(error.code, str(error), was_read=True)))
            continue
        kept.append(position)
        if hashed:
            digests.append(hashlib.sha256(content).hexdigest())
    pixels_NHWC = np.stack(pixels) if pixels else np.zeros((0, *spec.crop, 3), dtype=np.uint8)
    return Decoded(pixels_NHWC, tuple(kept), tuple(faults), tuple(digests))


def answer_unit(unit: Unit, decoded: Decoded, model: Model, options: ScoringOptions) -> Record:
    """The record of *unit*.

    Batches are cut from its decodable images in order, so that the same unit always gives the same
    bits.
    """
    outputs = ["probabilities"]
    if options.embedding or "embedding" in model.answer_outputs:
        outputs.append("embedding")
    found = _run(decoded.pixels_NHWC, model, outputs, options.batch_size)
    probabilities_NK = found["probabilities"]
    top = min(options.top_k, probabilities_NK.shape[1])
    index_Nk = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :top].astype(np.int32)
    arrays: dict[str, NDArray[np.float32] | NDArray[np.int32]] = {
        "top_index": index_Nk,
        "top_probability": np.take_along_axis(probabilities_NK, index_Nk, axis=1),
    }
    arrays |= {
        name: found[name] for name in ("probabilities", "embedding") if getattr(options, name)
    }
    confidence_N = probabilities_NK.max(axis=1, initial=0.0)
    classes, counts = np.unique(index_Nk[:, 0], return_counts=True)
    reference = model.manifest.reference
    samples = FIRST_SAMPLES if unit.index < FIRST_UNITS else SAMPLES
    tally = Tally(
        scored=len(decoded.kept),
        abstained=int((confidence_N < model.manifest.abstain_threshold).sum()),
        classes=dict(zip(classes.tolist(), counts.tolist(), strict=True)),
        codes=dict(Counter(fault.code for _, fault in decoded.faults)),
        signals={}
        if reference is None
        else drift_signals.counts(
            reference,
            probabilities_NK=probabilities_NK,
            embedding_ND=found.get("embedding"),
            samples=list(decoded.pixels_NHWC[:samples]),
        ),
        kinds=kinds_of(item.extra for item in unit.items),
    )
    return Record(
        unit.index,
        unit.first_row,
        unit.digest,
        [(unit.first_row + position, unit.items[position]) for position in decoded.kept],
        [
            (unit.first_row + position, unit.items[position], fault)
            for position, fault in decoded.faults
        ],
        arrays,
        list(decoded.sha256),
        tally,
    )


def score_unit(
    unit: Unit,
    contents: Iterable[bytes | Fault],
    spec: PreprocessSpec,
    model: Model,
    options: ScoringOptions,
) -> Record:
    """The record of *unit* from its *contents*, one for each item in order."""
    decoded = decode_unit(unit, contents, spec, hashed=options.sha256)
    return answer_unit(unit, decoded, model, options)


def _run(
    pixels_NHWC: NDArray[np.uint8], model: Model, outputs: Sequence[str], batch_size: int
) -> dict[str, NDArray[np.float32]]:
    sizes = {
        "probabilities": len(model.manifest.labels),
        "embedding": model.manifest.architecture.embedding_size or 0,
    }
    parts = [
        model.run(pixels_NHWC[start : start + batch_size], outputs)
        for start in range(0, len(pixels_NHWC), batch_size)
    ] or [{name: np.zeros((0, sizes[name]), dtype=np.float32) for name in outputs}]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

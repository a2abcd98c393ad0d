"""The actor and the task that run on the nodes of a Ray cluster, called by Ray Data for each row.

Every node imports this module, so it imports little.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from models.errors import LoupeError, ScoringError, StorageLost
from models.package.manifest import PreprocessSpec
from models.runtime.providers import Provider
from models.runtime.session import Model, open_model
from models.store.transfer import unpack_package
from service.scoring.compute.unit import (
    Decoded,
    ScoringOptions,
    answer_unit,
    decode_unit,
    score_unit,
)
from service.scoring.input.items import Fault, Item, Unit
from service.scoring.input.reader import ReadAhead, Reader
from service.scoring.output.journal import encode

PACKAGE_NAME = "model"
Row: TypeAlias = dict[str, Any]  # Any: bytes, in columns that Ray Data need not understand
"""A unit has `unit`, with its pixels also `pixels`, `facts` and `lost`.

A result has `record`, `lost` and `refused`. The last two are errors: an exception would reach the
driver wrapped by Ray."""


@dataclass(frozen=True, kw_only=True)
class RayJob:
    """What every node must know of a scoring job."""

    base: str
    max_image_bytes: int
    spec: PreprocessSpec
    precision: str
    provider: Provider
    options: ScoringOptions


class ScoringActor:
    """An actor with a session of its own, for rows of files or of pixels.

    It takes two calls at a time: one reads its files while the other computes.
    """

    def __init__(self, job: RayJob, packed: Callable[[], bytes]) -> None:
        self._job = job
        self._readers = ReadAhead(Reader(job.base, max_bytes=job.max_image_bytes))
        self._computing = threading.Lock()
        self._model: Model | LoupeError
        try:
            self._model = _open(job, packed())
        except LoupeError as error:
            self._model = error

    def __call__(self, row: Row) -> Row:
        """The record of a unit, or why there is none."""
        if row.get("lost"):
            return result_row(lost=row["lost"])
        if isinstance(self._model, LoupeError):
            return result_row(refused=f"a node of the cluster cannot run the model: {self._model}")
        unit, job = unit_in(row), self._job
        # Begins to read now, while the other call computes.
        contents = () if "pixels" in row else self._readers.of(unit.items)
        with self._computing:
            if "pixels" in row:
                record = answer_unit(unit, _decoded_in(row), self._model, job.options)
            else:
                try:
                    record = score_unit(unit, contents, job.spec, self._model, job.options)
                except StorageLost as error:
                    return result_row(lost=str(error))
            return result_row(encode(record))


class DecodeTask:
    """A task that reads and decodes a unit's files, for an actor whose GPU is too dear for that."""

    def __init__(self, job: RayJob) -> None:
        self._job = job

    def __call__(self, row: Row) -> Row:
        """The unit with its pixels."""
        unit, job = unit_in(row), self._job
        readers = ReadAhead(Reader(job.base, max_bytes=job.max_image_bytes))
        try:
            contents = readers.of(unit.items)
            decoded = decode_unit(unit, contents, job.spec, hashed=job.options.sha256)
        except StorageLost as error:
            return row | {"pixels": b"", "facts": b"", "lost": str(error)}
        finally:
            readers.close()
        pixels_NHWC = decoded.pixels_NHWC
        facts = [pixels_NHWC.shape, decoded.kept, decoded.faults, decoded.sha256]
        encoded = json.dumps(facts, default=asdict).encode()
        return row | {"pixels": pixels_NHWC.tobytes(), "facts": encoded, "lost": ""}


def result_row(record: bytes = b"", *, lost: str = "", refused: str = "") -> Row:
    """What an actor returns for a unit."""
    return {"record": record, "lost": lost, "refused": refused}


def row_of(unit: Unit) -> Row:
    """*unit* on its way to a node."""
    return {"unit": json.dumps(asdict(unit)).encode()}


def unit_in(row: Row) -> Unit:
    """The unit that `row_of` made *row* of."""
    fields = json.loads(row["unit"])
    for item in fields["items"]:
        item["fault"] = item["fault"] and Fault(**item["fault"])
        item["extra"] = tuple(map(tuple, item["extra"]))
    return Unit(**fields | {"items": tuple(Item(**item) for item in fields["items"])})


def _decoded_in(row: Row) -> Decoded:
    shape, kept, faults, sha256 = json.loads(row["facts"])
    return Decoded(
        np.frombuffer(row["pixels"], np.uint8).reshape(shape),
        tuple(kept),
        tuple((position, Fault(**fault)) for position, fault in faults),
        tuple(sha256),
    )


def _open(job: RayJob, packed: bytes) -> Model:
    """The model of the package *packed*, verified on this node. Raises `LoupeError`."""
    with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
        file, package = Path(place) / "package.zip", Path(place) / PACKAGE_NAME
        file.write_bytes(packed)
        unpack_package(file, package)
        model = open_model(
            package, threads=1, provider=job.provider, warm_batches=(1, job.options.batch_size)
        )
    if model.precision != job.precision:
        raise ScoringError(
            f"it answers in {model.precision}, this machine in {job.precision}: their CPUs differ"
            " too much"
        )
    return model

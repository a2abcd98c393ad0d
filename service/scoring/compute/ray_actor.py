"""What runs on the nodes of a Ray cluster, row by row as Ray Data hands it out.

Workers import this module, so it imports little.
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
from service.scoring.compute.unit import Decoded, Wanted, answer_unit, decode_unit
from service.scoring.input.ahead import ReadAhead
from service.scoring.input.items import Fault, Item, Unit
from service.scoring.input.reader import Reader
from service.scoring.output.journal import encode

PACKAGE_NAME = "model"
Row: TypeAlias = dict[str, Any]  # Any: bytes, in columns that Ray Data need not understand
"""`unit`; of what is decoded also `pixels`, `facts` and `lost`; of what is answered `record`, `lost` and `refused`. The last two are errors: what is
raised, Ray Data wraps beyond recognition."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every node must know of a job."""

    base: str
    max_image_bytes: int
    spec: PreprocessSpec
    precision: str
    provider: Provider
    wanted: Wanted


class Lane:
    """An actor with a model of its own, for rows of files or of pixels.

    Two calls at a time: one reads its files while the other computes.
    """

    def __init__(self, work: Work, packed: Callable[[], bytes]) -> None:
        self._work = work
        self._ahead = ReadAhead(Reader(work.base, max_bytes=work.max_image_bytes))
        self._computing = threading.Lock()
        self._model: Model | LoupeError
        try:
            self._model = _open(work, packed())
        except LoupeError as error:
            self._model = error

    def __call__(self, row: Row) -> Row:
        """The record of a unit. Refused if this node does not answer as the driver's machine does."""
        if row.get("lost"):
            return answer(lost=row["lost"])
        if isinstance(self._model, LoupeError):
            return answer(refused=f"a node of the cluster cannot run the model: {self._model}")
        unit = unit_in(row)
        contents = None if "pixels" in row else self._ahead.of(unit.items)
        with self._computing:
            try:
                decoded = (
                    _decoded_in(row)
                    if contents is None
                    else decode_unit(
                        unit, contents, self._work.spec, hashed=self._work.wanted.sha256
                    )
                )
            except StorageLost as error:
                return answer(lost=str(error))
            return answer(encode(answer_unit(unit, decoded, self._model, self._work.wanted)))


class Decode:
    """A task: a unit's files, read and decoded, for a lane whose own time is too dear for that."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, row: Row) -> Row:
        """The unit with its pixels."""
        unit = unit_in(row)
        ahead = ReadAhead(Reader(self._work.base, max_bytes=self._work.max_image_bytes))
        try:
            decoded = decode_unit(
                unit, ahead.of(unit.items), self._work.spec, hashed=self._work.wanted.sha256
            )
        except StorageLost as error:
            return {"unit": row["unit"], "pixels": b"", "facts": b"", "lost": str(error)}
        finally:
            ahead.close()
        facts = {
            "shape": decoded.pixels_NHWC.shape,
            "kept": decoded.kept,
            "faults": decoded.faults,
            "sha256": decoded.sha256,
        }
        return {
            "unit": row["unit"],
            "pixels": decoded.pixels_NHWC.tobytes(),
            "facts": json.dumps(facts, default=asdict).encode(),
            "lost": "",
        }


def answer(record: bytes = b"", *, lost: str = "", refused: str = "") -> Row:
    """What a lane has to say of a unit."""
    return {"record": record, "lost": lost, "refused": refused}


def row_of(unit: Unit) -> Row:
    """*unit* on its way to a node."""
    return {"unit": json.dumps(asdict(unit)).encode()}


def unit_in(row: Row) -> Unit:
    """The unit that `row_of` made *row* of."""
    fields = json.loads(row["unit"])
    items = []
    for item in fields["items"]:
        fault = None if item["fault"] is None else Fault(**item["fault"])
        extra = tuple((name, value) for name, value in item["extra"])
        items.append(Item(**{**item, "fault": fault, "extra": extra}))
    return Unit(fields["index"], fields["first_row"], tuple(items), fields["digest"])


def _decoded_in(row: Row) -> Decoded:
    facts = json.loads(row["facts"])
    pixels_NHWC = np.frombuffer(row["pixels"], np.uint8).reshape(facts["shape"])
    faults = tuple((position, Fault(**fault)) for position, fault in facts["faults"])
    return Decoded(pixels_NHWC, tuple(facts["kept"]), faults, tuple(facts["sha256"]))


def _open(work: Work, packed: bytes) -> Model:
    """The model, verified on this node. Raises `LoupeError`."""
    with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
        file, package = Path(place) / "package.zip", Path(place) / PACKAGE_NAME
        file.write_bytes(packed)
        unpack_package(file, package)
        model = open_model(
            package, threads=1, provider=work.provider, warm_batches=(1, work.wanted.batch_size)
        )
        if work.wanted.embedding and "embedding" not in model.answer_outputs and model.whole:
            # Opened now, while the package is still on the disk.
            model.whole()
    if model.precision != work.precision:
        raise ScoringError(
            f"it answers in {model.precision}, this machine in {work.precision}: their CPUs differ"
            " too much"
        )
    return model

"""What runs on the nodes of a Ray cluster. Workers import this module, so it imports little."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from models.errors import ScoringError
from models.manifest import PreprocessSpec
from models.providers import Provider
from models.runtime import Model, open_model
from models.transfer import unpack_package
from service.scoring.ahead import ReadAhead
from service.scoring.items import Unit
from service.scoring.reader import Reader
from service.scoring.unit import Decoded, Record, Wanted, answer_unit, decode_unit

PACKAGE_NAME = "model"


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
    """An actor with a model of its own. Two calls at a time: one reads its files while the other computes."""

    def __init__(self, work: Work, packed: bytes) -> None:
        self._work, self._packed = work, packed
        self._ahead = ReadAhead(Reader(work.base, max_bytes=work.max_image_bytes))
        self._computing = threading.Lock()
        self._model: Model | None = None

    def open(self) -> None:
        """Open and verify the model on this node. Raises `ScoringError` if it does not answer here as it does on the driver's machine."""
        work = self._work
        with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
            packed, package = Path(place) / "package.zip", Path(place) / PACKAGE_NAME
            packed.write_bytes(self._packed)
            self._packed = b""
            unpack_package(packed, package)
            model = open_model(package, threads=1, provider=work.provider, warm_batches=(1, work.wanted.batch_size))
            if work.wanted.embedding and model.at_hand is not None and "embedding" not in model.at_hand and model.whole is not None:
                # Opened now, while the package lies there.
                model.whole.session()
        if model.precision != work.precision:
            raise ScoringError(f"a node of the cluster answers in {model.precision}, this machine in {work.precision}: their CPUs differ too much")
        self._model = model

    def answer(self, unit: Unit, decoded: Decoded | None = None) -> Record:
        """The record of *unit*, from its files or from what `decode` made of them. Raises `StorageLost`."""
        assert self._model is not None, "opened first"
        contents = None if decoded is not None else self._ahead.of(unit.items)
        with self._computing:
            if decoded is None:
                assert contents is not None
                decoded = decode_unit(unit, contents, self._work.spec, hashed=self._work.wanted.sha256)
            return answer_unit(unit, decoded, self._model, self._work.wanted)


def decode(unit: Unit, work: Work) -> Decoded:
    """A task: *unit* read and decoded, for a lane whose own time is too dear for that. Raises `StorageLost`."""
    ahead = ReadAhead(Reader(work.base, max_bytes=work.max_image_bytes))
    try:
        return decode_unit(unit, ahead.of(unit.items), work.spec, hashed=work.wanted.sha256)
    finally:
        ahead.close()

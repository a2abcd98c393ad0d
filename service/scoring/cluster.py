"""The engine of many machines: Ray Data. Tasks read and decode, a pool of actors runs the model, the driver keeps the journal.

What is recorded, and when, is as with the local engine: a unit's record is in the driver's journal or the unit is done again. So a job may
begin under one engine and end under the other. Ray itself does again what a lost node had not handed over.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import LoupeError, ScoringError, StorageLost
from models.machine import threads_per_worker
from models.manifest import PreprocessSpec
from models.providers import Provider
from models.runtime import open_model
from models.transfer import pack_package, unpack_package
from service.scoring.items import Fault, Item, Unit
from service.scoring.job import Engine, Job
from service.scoring.journal import decode, encode
from service.scoring.places import require
from service.scoring.reader import Reader
from service.scoring.unit import Decoded, Record, Wanted, answer_unit, decode_unit

PURPOSE = "--engine ray"
PACKED_NAME = "model"
LOOPBACK = "127.0.0.1"
CONNECT_PATIENCE_S = 10.0
DECODE_CPUS, MODEL_CPUS = 0.25, 0.75
"""Of a core, for scheduling only: as many of each run as there are cores, and the kernel shares the cores between them. A whole core for each
would leave one half idle whenever the other is the slower."""
UNITS_PER_RUN = 8192
"""Half a million images handed to Ray at a time: so much of the listing is in the driver's memory, and after each the actors start anew."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class _Shared:
    """What every actor is made of."""

    packed: Any  # Any: Ray's reference to the packed package's bytes
    precision: str
    provider: Provider
    wanted: Wanted


def ray_engine(job: Job, *, wanted: Wanted, address: str | None) -> Engine:
    """The engine on the Ray cluster at *address*, or on one that lives as long as the job. Raises `ConfigError` without Ray."""
    require("ray.data", purpose=PURPOSE)
    return lambda units: _run(units, job=job, wanted=wanted, address=address)


def _run(units: Iterable[Unit], *, job: Job, wanted: Wanted, address: str | None) -> Iterator[Record]:
    """The record of each of *units*, in order."""
    ray = require("ray", purpose=PURPOSE)
    _connect(ray, address)
    model = job.classifier.model
    try:
        shared = _Shared(ray.put(_packed(model.path)), model.precision, model.provider, wanted)
        remaining = iter(units)
        while part := list(itertools.islice(remaining, UNITS_PER_RUN)):
            yield from _run_part(part, job=job, shared=shared)
    except ray.exceptions.RayError as error:
        raise ScoringError(f"Ray gave up: {error}. The job's state is kept: go on with --resume, with either engine") from error
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            # On loopback: a cluster for one job is nobody else's.
            ray.init(address="local", num_cpus=threads_per_worker(1), include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)
        else:
            _require_listener(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ScoringError(f"no Ray cluster at {address or 'this machine'}: {error}. `ray status` says whether one runs") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _require_listener(address: str) -> None:
    """Raise `OSError` if nobody listens at *address* `HOST:PORT`; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_PATIENCE_S).close()


def _run_part(units: list[Unit], *, job: Job, shared: _Shared) -> Iterator[Record]:
    ray = require("ray", purpose=PURPOSE)
    data = require("ray.data", purpose=PURPOSE)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    lanes = max(1, min(len(units), math.floor(ray.cluster_resources().get("CPU", 1))))
    gpus = {} if shared.provider == "cpu" else {"num_gpus": 1}
    if gpus:
        lanes = max(1, math.floor(ray.cluster_resources().get("GPU", 0)))
    rows = [{"unit": json.dumps(asdict(unit)).encode()} for unit in units]
    answered = (
        data.from_items(rows, override_num_blocks=len(rows))
        .map(
            _Decode(job.source.base, job.plan.max_image_bytes, job.classifier.manifest.preprocess, shared.wanted.sha256),
            num_cpus=DECODE_CPUS,
        )
        .map(_Lane, fn_constructor_args=(shared,), compute=data.ActorPoolStrategy(size=lanes), num_cpus=MODEL_CPUS, **gpus)
    )
    for row in answered.iter_rows():
        if row["lost"]:
            raise StorageLost(row["lost"])
        if row["refused"]:
            raise ScoringError(row["refused"])
        yield decode(row["record"])


def _packed(package: Path) -> bytes:
    """The package in one piece: nodes need not see the store."""
    with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
        file = Path(place) / "package.zip"
        pack_package(package, file, name=PACKED_NAME)
        return file.read_bytes()


class _Decode:
    """A task: the unit's files, read and decoded."""

    def __init__(self, base: str, max_bytes: int, spec: PreprocessSpec, hashed: bool) -> None:
        self._base, self._max_bytes, self._spec, self._hashed = base, max_bytes, spec, hashed

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = _unit(row["unit"])
        reader = Reader(self._base, max_bytes=self._max_bytes)
        try:
            decoded = decode_unit(unit, map(reader.read, unit.items), self._spec, hashed=self._hashed)
        except StorageLost as error:
            # Not raised: Ray would wrap it beyond recognition.
            return {"unit": row["unit"], "pixels": b"", "facts": b"", "lost": str(error)}
        facts = {"shape": decoded.pixels_NHWC.shape, "kept": decoded.kept, "faults": decoded.faults, "sha256": decoded.sha256}
        text = json.dumps(facts, default=asdict).encode()
        return {"unit": row["unit"], "pixels": decoded.pixels_NHWC.tobytes(), "facts": text, "lost": ""}


class _Lane:
    """An actor: the model, opened and verified on its node."""

    def __init__(self, shared: _Shared) -> None:
        ray = require("ray", purpose=PURPOSE)
        self._wanted = shared.wanted
        self._refused = ""
        try:
            with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
                packed = Path(place) / "package.zip"
                packed.write_bytes(ray.get(shared.packed))
                unpack_package(packed, Path(place) / "package")
                batches = (1, shared.wanted.batch_size)
                self._model = open_model(Path(place) / "package", threads=1, provider=shared.provider, warm_batches=batches)
                if "embedding" in self._outputs() and self._model.whole is not None:
                    # Opened now, while the package lies there.
                    self._model.whole.session()
        except LoupeError as error:
            self._refused = f"a node of the cluster cannot run the model: {error}"
            return
        if self._model.precision != shared.precision:
            self._refused = (
                f"a node of the cluster answers in {self._model.precision}, this machine in {shared.precision}: their CPUs differ too much"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["lost"] or self._refused:
            return {"record": b"", "lost": row["lost"], "refused": self._refused}
        facts = json.loads(row["facts"])
        pixels_NHWC = np.frombuffer(row["pixels"], np.uint8).reshape(facts["shape"])
        faults = tuple((position, Fault(**fault)) for position, fault in facts["faults"])
        decoded = Decoded(pixels_NHWC, tuple(facts["kept"]), faults, tuple(facts["sha256"]))
        record = answer_unit(_unit(row["unit"]), decoded, self._model, self._wanted)
        return {"record": encode(record), "lost": "", "refused": ""}

    def _outputs(self) -> set[str]:
        """Outputs that the session at hand does not have and the job wants."""
        wanted = {"embedding"} if self._wanted.embedding else set()
        return wanted - (self._model.at_hand or wanted)


def _unit(text: bytes) -> Unit:
    fields = json.loads(text)
    items = []
    for item in fields["items"]:
        fault = None if item["fault"] is None else Fault(**item["fault"])
        extra = tuple((name, value) for name, value in item["extra"])
        items.append(Item(**{**item, "fault": fault, "extra": extra}))
    return Unit(fields["index"], fields["first_row"], tuple(items), fields["digest"])

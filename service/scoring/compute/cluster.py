"""The engine of many machines: a Ray cluster, joined or started.

`ray_pipeline.py` runs units on it. The driver keeps the journal, as with the local engine: a unit's
record is in the journal, or the unit is done again. So a job may begin under one engine and end
under the other.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from models.errors import ScoringError
from models.machine import threads_per_worker
from models.store.transfer import pack_package
from service.scoring.compute.local import run_local
from service.scoring.compute.ray_actor import PACKAGE_NAME, RayJob
from service.scoring.compute.ray_pipeline import RayDataPipeline
from service.scoring.compute.unit import Record, ScoringOptions
from service.scoring.input.items import Unit
from service.scoring.input.places import require
from service.scoring.input.reader import Reader
from service.scoring.job import Engine, Job

PURPOSE = "--engine ray"
CONNECT_PATIENCE_S = 10.0
CONNECT_TRIES = 3
"""Of a second each. Ray's default is 20, without a message."""
OPENING_S = 5.0
"""From the start of a cluster until its actors are open: this machine keeps units for so long.

More or less costs little."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Otherwise a call that is under way when a job is stopped starts another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}


class Cluster:
    """A Ray cluster within a context: the one at *address*, or one on this machine for this job."""

    def __init__(self, address: str | None) -> None:
        self.is_own = address is None
        self._address = address
        self.ray: Future[Any] = Future()  # Any: the module, which may not be installed
        """Gives `ray`, connected.

        Raises `ConfigError` without Ray, `ScoringError` without such a cluster or a token."""
        self.not_needed = threading.Event()
        """Set it to let the cluster end."""
        self._keeper = threading.Thread(target=self._keep, name="ray", daemon=True)

    def __enter__(self) -> Cluster:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.not_needed.set()
        self._keeper.join()

    def engine(self, job: Job, *, options: ScoringOptions) -> Engine:
        """The engine on this cluster."""
        return lambda units: _run(iter(units), job=job, options=options, cluster=self)

    def _keep(self) -> None:
        """Start and end in one thread: Ray's processes end with the thread that began them."""
        try:
            ray = _connected(self._address)
        except BaseException as error:  # noqa: BLE001 - raised where Ray is asked for
            self.ray.set_exception(error)
            return
        self.ray.set_result(ray)
        self.not_needed.wait()
        ray.shutdown()


def _connected(address: str | None) -> Any:
    # A cluster for one job has a token that nobody else has, whoever can reach its ports.
    access = (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        if address is None
        else {"RAY_gcs_server_port_wait_time_s": str(CONNECT_TRIES)}
    )
    for name, value in (_QUIET | access).items():
        # Before Ray is imported: parts of it read them only then.
        os.environ.setdefault(name, value)
    ray = require("ray", purpose=PURPOSE)
    require("ray.data", purpose=PURPOSE)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(
                address="local", num_cpus=threads_per_worker(1), include_dashboard=False, **quiet
            )
        else:
            _require_listener(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _refusal(address, error) from error
    return ray


def _require_listener(address: str) -> None:
    """Raise `OSError` if nothing listens at *address* `HOST:PORT`. Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_PATIENCE_S).close()


def _refusal(address: str | None, error: BaseException) -> ScoringError:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if any(
        "InvalidAuthToken" in str(cause) or type(cause).__name__ == "AuthenticationError"
        for cause in causes
    ):
        return ScoringError(
            f"the Ray cluster at {address} wants a token, and this process has none or another one."
            " Set RAY_AUTH_MODE=token, and bring the token: ~/.ray/auth_token as on the cluster's"
            " head, or RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH (`ray get-auth-token` on the head"
            " prints it)"
        )
    return ScoringError(
        f"no Ray cluster at {address or 'this machine'}: {error}. `ray status` says whether one"
        " runs"
    )


def _run(
    units: Iterator[Unit], *, job: Job, options: ScoringOptions, cluster: Cluster
) -> Iterator[Record]:
    """The record of each of *units*, in order."""
    records: Iterator[Record] | None = None

    def meanwhile() -> Iterator[Unit]:
        """Units for this machine itself, until the actors of its cluster are likely to be open."""
        nonlocal records
        begun_s, taken = time.monotonic(), 0
        while not cluster.ray.done():
            if (unit := next(units, None)) is None:
                return
            yield unit
            taken += 1
        rate = taken / max(1.0, time.monotonic() - begun_s)
        own = list(itertools.islice(units, math.ceil(rate * OPENING_S)))
        records = _pipeline(cluster.ray.result(), job, options).begin(units)
        yield from own

    try:
        if cluster.is_own:
            # Ray's start is mostly waiting, and the model is open here already. With a cluster
            # elsewhere, this machine may not even see the images.
            reader = Reader(job.source.base, max_bytes=job.plan.max_image_bytes)
            yield from run_local(
                meanwhile(),
                reader=reader,
                model=job.classifier.model,
                options=options,
                threads=threads_per_worker(1),
            )
            if records is None:
                job.console.print(
                    "the job was done before its Ray cluster had begun; without --engine ray it"
                    " takes less"
                )
                return
        else:
            records = _pipeline(cluster.ray.result(), job, options).begin(units)
        yield from records
    finally:
        # Its end takes a second, in which the output is written.
        cluster.not_needed.set()


def _pipeline(ray: Any, job: Job, options: ScoringOptions) -> RayDataPipeline:
    model = job.classifier.model
    ray_job = RayJob(
        base=job.source.base,
        max_image_bytes=job.plan.max_image_bytes,
        spec=job.classifier.spec,
        precision=model.precision,
        provider=model.provider,
        options=options,
    )
    return RayDataPipeline(
        ray=ray,
        job=ray_job,
        packed=partial(ray.get, ray.put(_packed(model.path))),
        say=job.console.print,
    )


def _packed(package: Path) -> bytes:
    """The package as one file: nodes need not see the store."""
    with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
        file = Path(place) / "package.zip"
        pack_package(package, file, name=PACKAGE_NAME)
        return file.read_bytes()

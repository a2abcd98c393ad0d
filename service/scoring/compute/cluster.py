"""The engine of many machines: a Ray cluster, joined or begun, on which Ray Data makes records
(`pipeline.py`); the driver keeps the journal.

What is recorded, and when, is as with the local engine: a unit's record is in the driver's journal
or the unit is done again. So a job may begin under one engine and end under the other.
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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from models.errors import ScoringError
from models.machine import threads_per_worker
from models.store.transfer import pack_package
from service.scoring.compute.local import run_local
from service.scoring.compute.ray_actor import PACKAGE_NAME, Work
from service.scoring.compute.ray_pipeline import Pipeline
from service.scoring.compute.unit import Record, Wanted
from service.scoring.input.items import Unit
from service.scoring.input.places import require
from service.scoring.input.reader import Reader
from service.scoring.job import Engine, Job

PURPOSE = "--engine ray"
CONNECT_PATIENCE_S = 10.0
CONNECT_TRIES = 3
"""Of a second each; Ray's own default is 20, without a word."""
OPENING_S = 5.0
"""From a cluster's start until lanes of its own are open: this machine's own ones get so much to do. More or less costs little."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Or what is still under way when a job is stopped begins a cluster of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}


class Cluster:
    """A Ray cluster for as long as the context lasts: the one at *address*, or one of this machine
    for this job alone.
    """

    def __init__(self, address: str | None) -> None:
        self.is_own = address is None
        self._address = address
        self._ray: Future[Any] = Future()  # Any: the module, which may not be installed
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="ray", daemon=True)

    def __enter__(self) -> Cluster:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()
        self._keeper.join()

    @property
    def is_decided(self) -> bool:
        """Whether `ray` answers or raises at once."""
        return self._ray.done()

    def give_up(self) -> None:
        """It is not needed any more. Waits for nothing."""
        self._over.set()

    def ray(self) -> Any:
        """Ray, connected.

        Raises `ConfigError` without Ray, `ScoringError` if there is no such cluster, or if it does
        not let us in.
        """
        return self._ray.result()

    def engine(self, job: Job, *, wanted: Wanted) -> Engine:
        """The engine on this cluster."""
        return lambda units: _run(iter(units), job=job, wanted=wanted, cluster=self)

    def _keep(self) -> None:
        """Begins and ends in one thread: Linux ends Ray's processes with the thread that started
        them.
        """
        try:
            ray = _connected(self._address)
        except BaseException as error:  # noqa: BLE001 - raised where Ray is asked for
            self._ray.set_exception(error)
            return
        self._ray.set_result(ray)
        self._over.wait()
        ray.shutdown()


def _connected(address: str | None) -> Any:
    settings = _QUIET | (
        _of_its_own()
        if address is None
        else {"RAY_gcs_server_port_wait_time_s": str(CONNECT_TRIES)}
    )
    for name, value in settings.items():
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


def _of_its_own() -> dict[str, str]:
    """A token that nobody else has: a cluster for one job is nobody else's, whoever can reach its
    ports.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _require_listener(address: str) -> None:
    """Raise `OSError` if nobody listens at *address* `HOST:PORT`; Ray itself would try for minutes."""
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


def _run(units: Iterator[Unit], *, job: Job, wanted: Wanted, cluster: Cluster) -> Iterator[Record]:
    """The record of each of *units*, in order."""
    answers: Callable[[], Iterator[Record]] | None = None

    def meanwhile() -> Iterator[Unit]:
        """Units for this machine's own lanes, until those of its cluster are likely to be open."""
        nonlocal answers
        begun_s, taken = time.monotonic(), 0
        while not cluster.is_decided:
            if (unit := next(units, None)) is None:
                return
            yield unit
            taken += 1
        rate = taken / max(1.0, time.monotonic() - begun_s)
        kept = list(itertools.islice(units, math.ceil(rate * OPENING_S)))
        answers = _pipeline(cluster.ray(), job, wanted).begin(units)
        yield from kept

    try:
        if cluster.is_own:
            # Most of Ray's start is waiting, and the model is open here already. Elsewhere this
            # machine may not even see the images.
            reader = Reader(job.source.base, max_bytes=job.plan.max_image_bytes)
            yield from run_local(
                meanwhile(),
                reader=reader,
                model=job.classifier.model,
                wanted=wanted,
                lanes=threads_per_worker(1),
            )
            if answers is None:
                job.console.print(
                    "the job was done before its Ray cluster had begun; without --engine ray it"
                    " takes less"
                )
                return
        else:
            answers = _pipeline(cluster.ray(), job, wanted).begin(units)
        yield from answers()
    finally:
        # Its end takes a second: meanwhile the output is written.
        cluster.give_up()


def _pipeline(ray: Any, job: Job, wanted: Wanted) -> Pipeline:
    model = job.classifier.model
    work = Work(
        base=job.source.base,
        max_image_bytes=job.plan.max_image_bytes,
        spec=job.classifier.spec,
        precision=model.precision,
        provider=model.provider,
        wanted=wanted,
    )
    return Pipeline(
        ray=ray,
        work=work,
        packed=partial(ray.get, ray.put(_packed(model.path))),
        tell=job.console.print,
    )


def _packed(package: Path) -> bytes:
    """The package in one piece: nodes need not see the store."""
    with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
        file = Path(place) / "package.zip"
        pack_package(package, file, name=PACKAGE_NAME)
        return file.read_bytes()

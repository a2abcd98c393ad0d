"""Ray Data: turns units into records on a cluster.

It hands out units, bounds how many are under way, and repeats those of a lost node.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from models.errors import ScoringError, StorageLost
from service.scoring.compute.ray_actor import DecodeTask, RayJob, Row, ScoringActor, row_of
from service.scoring.compute.unit import Record
from service.scoring.input.items import Unit
from service.scoring.output.journal import decode

UNITS_PER_RUN = 8192
"""Half a million images are handed to Ray at a time.

So much of the listing is in the driver's memory. After each run the actors start again."""
CALLS = 2
"""Calls at a time in an actor: it reads the files of one unit while it computes another."""
MOST_UNOPENED = 5
"""Actors in a row that may end while they open, before the job gives up.

Nodes are lost at any time."""
PATIENCE_S = 30.0
"""Wait for the first record, after which the user is told."""


@dataclass(frozen=True, kw_only=True)
class RayDataPipeline:
    """What a job needs of a cluster that Ray is connected to."""

    ray: Any  # Any: `ray` with `ray.data`, which may not be installed
    job: RayJob
    packed: Callable[[], bytes]
    """Gives the package on any node."""
    say: Callable[[str], None]
    """Shows a line to the user."""

    def begin(self, units: Iterator[Unit]) -> Iterator[Record]:
        """The record of each of *units*, in order. Starts on the first `UNITS_PER_RUN` now."""
        return self._records(self._started(units), units)

    def _records(
        self, run: Future[Iterator[Row]] | None, units: Iterator[Unit]
    ) -> Iterator[Record]:
        try:
            while run is not None:
                for row in self._awaited(run):
                    yield _record_in(row)
                run = self._started(units)
        except Exception as error:
            if not type(error).__module__.startswith("ray."):
                raise
            raise ScoringError(
                f"Ray gave up: {error}. The job's state is kept: continue with --resume, with"
                " either engine"
            ) from error

    def _started(self, units: Iterator[Unit]) -> Future[Iterator[Row]] | None:
        rows = [row_of(unit) for unit in itertools.islice(units, UNITS_PER_RUN)]
        if not rows:
            return None
        run: Future[Iterator[Row]] = Future()

        def begin() -> None:
            try:
                answered = iter(self._dataset(rows).iter_rows())
                # Ray Data begins when it is asked for the first one.
                run.set_result(itertools.chain([next(answered)], answered))
            except BaseException as error:  # noqa: BLE001 - raised where the rows are asked for
                run.set_exception(error)

        threading.Thread(target=begin, name="ray-data", daemon=True).start()
        return run

    def _awaited(self, run: Future[Iterator[Row]]) -> Iterator[Row]:
        try:
            return run.result(timeout=PATIENCE_S)
        except TimeoutError:
            if not run.done():
                self.say(
                    "waiting for the cluster: it has given no answer yet; `ray status` shows who"
                    " has its cores"
                )
            return run.result()

    def _dataset(self, rows: list[Row]) -> Any:
        data = self.ray.data
        _set_up(data.DataContext.get_current())
        gpus = 0 if self.job.provider == "cpu" else 1
        places = int(self.ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
        units = data.from_items(rows, override_num_blocks=len(rows))
        if gpus:
            # Many cores of all nodes decode for one GPU. On a CPU an actor decodes by itself, so
            # that pixels stay within a process.
            units = units.map(DecodeTask(self.job), num_cpus=1)
        actors = data.ActorPoolStrategy(
            min_size=1,
            initial_size=max(1, min(places, len(rows))),
            max_concurrent_calls_per_actor=CALLS,
            enable_true_multi_threading=True,
        )
        return units.map(
            ScoringActor,
            fn_constructor_args=(self.job, self.packed),
            compute=actors,
            num_cpus=1 - gpus,
            num_gpus=gpus,
        )


def _set_up(context: Any) -> None:
    """Ray Data's settings for a job of few large rows."""
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = MOST_UNOPENED
    # `execution_no_progress_timeout_s` stays at half an hour: only this ends a job with a poison
    # unit, which kills every worker. The next line saves a look at each worker's memory a second.
    context.memory_usage_poll_interval_s = None
    # Its errors come with tracebacks; ours are a line.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _record_in(row: Row) -> Record:
    if row["lost"]:
        raise StorageLost(row["lost"])
    if row["refused"]:
        raise ScoringError(row["refused"])
    return decode(row["record"])

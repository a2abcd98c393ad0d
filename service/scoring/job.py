"""A job from its input to its output: begun or resumed, computed by an engine, recorded, finished."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from models.errors import ConfigError, DataError, LoupeError, TooManyFailures
from models.machine import threads_per_worker
from service.engine.classifier import Classifier
from service.scoring.compute.local import run_local
from service.scoring.compute.quarantine import released
from service.scoring.compute.unit import Record, ScoringOptions
from service.scoring.input.inputs import SUFFIXES, Input, told_others
from service.scoring.input.items import Unit, units_of
from service.scoring.input.places import (
    exists,
    is_remote,
    local_path,
    open_place,
    remove,
    replaced,
    storage_kept,
)
from service.scoring.input.reader import Reader
from service.scoring.input.values import distinct, plain_text
from service.scoring.output.journal import Journal, read_records
from service.scoring.output.outputs import (
    FOLDER,
    check_partition,
    format_of,
    json_line,
    require_folder,
    write_output,
)
from service.scoring.output.rows import Layout
from service.scoring.output.summary import summarise
from service.scoring.output.tally import Tally
from service.scoring.plan import JOURNAL_FILE, Budget, Plan, clear_state, state_of
from service.scoring.progress import Display

DEAD_LETTER = ("row", "path", "code", "reason")
Engine = Callable[[Iterable[Unit]], Iterator[Record]]
"""The record of each unit, in order."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that can be run. *console* is where progress is told."""

    plan: Plan
    source: Input
    classifier: Classifier
    out: str
    state: Path
    budget: Budget = field(default_factory=Budget)
    partition_by: str | None = None
    console: Console = field(
        default_factory=lambda: Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
    )

    @property
    def failed_file(self) -> str:
        """The dead letters."""
        return f"{_stem(self.out)}.failed.jsonl"

    @property
    def summary_file(self) -> str:
        """The summary."""
        return f"{_stem(self.out)}.summary.json"

    def run(
        self, engine: Engine, *, resume: bool = False, overwrite: bool = False
    ) -> dict[str, Any]:
        """The summary, once the output is complete.

        Raises `ScoringError`, with the state kept, if the job cannot go on; `ConfigError` or
        `DataError` if it cannot begin.
        """
        self._require_harmless(overwrite=overwrite)
        if not overwrite and not self.state.exists() and exists(self.out):
            done = self._done()
            if done is None:
                raise ConfigError(
                    f"{self.out} exists already and is not of this job; replace it with"
                    " --overwrite, or choose another --out"
                )
            if not resume:
                raise ConfigError(
                    f"the job is finished: {self.out} has the {done['scored']:,} of"
                    f" {done['images']:,} images that were scored. Score them again with"
                    " --overwrite, or choose another --out"
                )
            self.console.print("the job is complete already")
            return done | {"seconds": 0.0, "resumed_at": done["images"]}
        with (
            state_of(self.state, self.plan, resume=resume, overwrite=overwrite) as folder,
            closing(Journal(folder / JOURNAL_FILE)) as journal,
        ):
            begun_s, before = time.monotonic(), journal.tally.seen
            others = Counter[str]()
            try:
                self._score(engine, journal, others)
            except (KeyboardInterrupt, SystemExit):
                self.console.print(
                    f"stopped after {journal.tally.seen:,} images; the same command with --resume"
                    " goes on"
                )
                raise
            except LoupeError:
                if journal.units == 0:
                    # Nothing to go on with: the command put right is a new job.
                    clear_state(folder)
                raise
            if journal.units == 0 and next(iter(units_of(self.source.items())), None) is None:
                clear_state(folder)
                passed = told_others(others)
                found = f" ({passed})" if passed else ""
                looked = (
                    f"looked for {', '.join(SUFFIXES)} in folders and archives, or rows in a table"
                )
                raise DataError(f"{self.plan.input} holds no images{found}; {looked}")
            summary = self._finish(journal.path, journal.tally, others)
            elapsed_s = time.monotonic() - begun_s
            clear_state(folder)
        return summary | {"seconds": elapsed_s, "resumed_at": before}

    def _require_harmless(self, *, overwrite: bool) -> None:
        """Raise `ConfigError` if the outputs would take the place of the input, or of what no job
        made.
        """
        places = {
            _absolute(place): place for place in (self.out, self.failed_file, self.summary_file)
        }
        source = _absolute(self.plan.input)
        if source in places:
            raise ConfigError(
                f"the job would write {places[source]} over its own input; choose another --out"
            )
        if format_of(self.out, partition_by=self.partition_by) == FOLDER:
            require_folder(self.out, overwrite=overwrite)

    def _done(self) -> dict[str, Any] | None:
        """The summary of the job that made the output, if it was just this one."""
        if not exists(self.summary_file):
            return None
        with storage_kept(self.summary_file), open_place(self.summary_file) as stream:
            summary: dict[str, Any] = json.load(stream)
        return summary if summary.get("job") == self.plan.digest else None

    def _score(self, engine: Engine, journal: Journal, others: Counter[str]) -> None:
        units = self._remaining(journal, others)
        with (
            Display(self.console, done=journal.tally.seen, count=self._count).shown() as display,
            closing(_closable(engine(units))) as records,
        ):
            display.update(journal.tally)
            for record in released(records, any_before=journal.tally.scored > 0):
                journal.append(record)
                if journal.units == 1:
                    check_partition(self._layout(journal.tally), self.partition_by)
                display.update(journal.tally)
                if self.budget.passed(journal.tally, final=False):
                    break
        if self.budget.passed(journal.tally, final=True):
            self._write_failed(journal.path, journal.tally)
            codes = ", ".join(
                f"{count} {code}" for code, count in sorted(journal.tally.codes.items())
            )
            raise TooManyFailures(
                f"{journal.tally.failed:,} of {journal.tally.seen:,} images failed ({codes}), more"
                f" than --max-failures {self.budget}: see {self.failed_file}. The job's state is"
                " kept: --resume with a higher --max-failures goes on, --overwrite starts anew"
            )

    def _units(self, others: Counter[str] | None = None) -> Iterator[Unit]:
        """The units of this job's shard; *others* as `Input.items` has it."""
        index, count = self.plan.shard
        return itertools.islice(units_of(self.source.items(others)), index, None, count)

    def _remaining(self, journal: Journal, others: Counter[str]) -> Iterator[Unit]:
        """The units that *journal* does not hold yet.

        Raises `DataError` if those that it holds are not the input's first ones any more.
        """
        units = self._units(others)
        if journal.units:
            last = next(itertools.islice(units, journal.units - 1, None), None)
            if last is None or last.digest != journal.digest:
                raise DataError(
                    f"{self.plan.input} is not what it was when the job was begun: other, more or"
                    f" fewer rows among the first {journal.tally.seen:,}. Bring it back as it was"
                    " and go on with --resume, or start anew with --overwrite"
                )
        return units

    def _count(self, stop: threading.Event) -> int | None:
        """Images in all; None if that would cost another pass over a bucket's archives, or is not
        wanted any more.
        """
        if not self.source.cheap:
            return None
        total = 0
        try:
            for unit in self._units():
                total += len(unit.items)
                if stop.is_set():
                    return None
        except (LoupeError, OSError, ValueError):
            # The job itself meets the same and says so.
            return None
        return total

    def _finish(self, journal: Path, tally: Tally, others: Counter[str]) -> dict[str, Any]:
        """Write dead letters and summary, and last the output: where it is, all is there."""
        layout = self._layout(tally)
        self._write_failed(journal, tally)
        found = summarise(tally, self.classifier.manifest, model=self.plan.model)
        found |= {"not_images": dict(others.most_common()), "renamed": layout.renamed}
        summary = {"job": self.plan.digest, "input": self.plan.input, "output": self.out, **found}
        with replaced(self.summary_file) as stream:
            stream.write(
                json.dumps(summary, indent=1, ensure_ascii=False).encode(
                    "utf-8", "backslashreplace"
                )
                + b"\n"
            )
        write_output(read_records(journal), self.out, layout, partition_by=self.partition_by)
        return summary

    def _layout(self, tally: Tally) -> Layout:
        manifest = self.classifier.manifest
        labels = tuple(plain_text(label) for label in manifest.labels)
        return Layout(
            self.plan.columns,
            tuple(tally.kinds.items()),
            labels,
            self.plan.model,
            manifest.abstain_threshold,
        )

    def _write_failed(self, journal: Path, tally: Tally) -> None:
        if not tally.failed:
            remove(self.failed_file)
            return
        names = dict(zip(tally.kinds, distinct(tally.kinds, taken=DEAD_LETTER), strict=True))
        with replaced(self.failed_file) as stream:
            for record in read_records(journal):
                for row, item, fault in record.failed:
                    extra = {names[name]: value for name, value in item.extra}
                    stream.write(
                        json_line(
                            dict(
                                zip(
                                    DEAD_LETTER,
                                    (row, item.path, fault.code, fault.reason),
                                    strict=True,
                                )
                            )
                            | extra
                        )
                    )


def local_engine(job: Job, *, options: ScoringOptions, lanes: int = 0) -> Engine:
    """The engine of one machine, with *lanes* threads that compute; 0 for as many as the cgroup
    allows cores.
    """
    reader = Reader(job.source.base, max_bytes=job.plan.max_image_bytes)
    return lambda units: run_local(
        units,
        reader=reader,
        model=job.classifier.model,
        options=options,
        threads=lanes or threads_per_worker(1),
    )


def _closable(
    records: Iterator[Record],
) -> Any:  # Any: engines are generators, which `Iterator` does not say
    return records


def _absolute(place: str) -> str:
    return place.rstrip("/") if is_remote(place) else os.path.realpath(local_path(place))


def _stem(out: str) -> str:
    """*out* without its ending."""
    folder, slash, name = out.rstrip("/").rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"

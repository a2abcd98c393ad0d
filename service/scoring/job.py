"""A scoring job: begun or resumed, computed by an engine, recorded in the journal, finished."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
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
from service.scoring.input.inputs import SUFFIXES, Input, skipped_text
from service.scoring.input.items import Unit, distinct, plain_text, units_of
from service.scoring.input.places import (
    exists,
    is_remote,
    local_path,
    open_place,
    raising_storage_lost,
    remove,
    replaced,
)
from service.scoring.input.reader import Reader
from service.scoring.output.columns import OutputColumns
from service.scoring.output.journal import Journal, read_records
from service.scoring.output.outputs import (
    FOLDER,
    check_partition,
    format_of,
    json_line,
    require_folder,
    write_output,
)
from service.scoring.output.tally import Tally, summarise
from service.scoring.plan import JOURNAL_FILE, FailureLimit, Plan, clear_state, state_of
from service.scoring.progress import progress_shown

DEAD_LETTER = ("row", "path", "code", "reason")
Engine = Callable[[Iterable[Unit]], Iterator[Record]]
"""The record of each unit, in order."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that can be run. *console* shows its progress."""

    plan: Plan
    source: Input
    classifier: Classifier
    out: str
    state: Path
    limit: FailureLimit = field(default_factory=FailureLimit)
    partition_by: str | None = None
    console: Console = field(
        default_factory=lambda: Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
    )

    @property
    def failed_file(self) -> str:
        """The dead-letter file."""
        return f"{_stem(self.out)}.failed.jsonl"

    @property
    def summary_file(self) -> str:
        """The summary."""
        return f"{_stem(self.out)}.summary.json"

    def run(
        self, engine: Engine, *, resume: bool = False, overwrite: bool = False
    ) -> dict[str, Any]:
        """The summary, once the output is complete.

        Raises `ScoringError`, with the state kept, if the job cannot continue; `ConfigError` or
        `DataError` if it cannot begin.
        """
        self._require_harmless(overwrite=overwrite)
        if not overwrite and not self.state.exists() and exists(self.out):
            return self._finished_before(resume=resume)
        with (
            state_of(self.state, self.plan, resume=resume, overwrite=overwrite) as folder,
            closing(Journal(folder / JOURNAL_FILE)) as journal,
        ):
            started_s, resumed_at = time.monotonic(), journal.tally.seen
            try:
                summary = self._complete(engine, journal)
            except (KeyboardInterrupt, SystemExit):
                self.console.print(
                    f"stopped after {journal.tally.seen:,} images; the same command with --resume"
                    " continues"
                )
                raise
            except LoupeError:
                if journal.units == 0:
                    # There is nothing to resume: the corrected command is a new job.
                    clear_state(folder)
                raise
            elapsed_s = time.monotonic() - started_s
            clear_state(folder)
        return summary | {"seconds": elapsed_s, "resumed_at": resumed_at}

    def _require_harmless(self, *, overwrite: bool) -> None:
        """Raise `ConfigError` if the outputs would replace the input, or files of no job."""
        for place in (self.out, self.failed_file, self.summary_file):
            if _absolute(place) == _absolute(self.plan.input):
                raise ConfigError(
                    f"the job would write {place} over its own input; choose another --out"
                )
        if format_of(self.out, partition_by=self.partition_by) == FOLDER:
            require_folder(self.out, overwrite=overwrite)

    def _finished_before(self, *, resume: bool) -> dict[str, Any]:
        """The summary of this job, which wrote the output before.

        Raises `ConfigError` without *resume*, or if another job wrote it.
        """
        done: dict[str, Any] = {}
        if exists(self.summary_file):
            with raising_storage_lost(self.summary_file), open_place(self.summary_file) as stream:
                done = json.load(stream)
        if done.get("job") != self.plan.digest:
            raise ConfigError(
                f"{self.out} exists already and is not of this job; replace it with --overwrite, or"
                " choose another --out"
            )
        if not resume:
            raise ConfigError(
                f"the job is finished: {self.out} has the {done['scored']:,} of"
                f" {done['images']:,} images that were scored. Score them again with --overwrite,"
                " or choose another --out"
            )
        self.console.print("the job is complete already")
        return done | {"seconds": 0.0, "resumed_at": done["images"]}

    def _complete(self, engine: Engine, journal: Journal) -> dict[str, Any]:
        """Score what *journal* does not hold yet, and write the output."""
        not_images, limit = Counter[str](), self.limit
        units = self._remaining(journal, not_images)
        with (
            progress_shown(self.console, resumed_at=journal.tally.seen, count=self._count) as show,
            closing(engine(units)) as records,  # type: ignore[type-var]  # engines are generators
        ):
            show(journal.tally)
            for record in released(records, any_before=journal.tally.scored > 0):
                journal.append(record)
                if journal.units == 1:
                    check_partition(self._columns(journal.tally), self.partition_by)
                show(journal.tally)
                if limit.exceeded(journal.tally, final=False):
                    break
        tally = journal.tally
        if limit.exceeded(tally, final=True):
            self._write_failed(journal.path, tally)
            codes = ", ".join(f"{count} {code}" for code, count in sorted(tally.codes.items()))
            raise TooManyFailures(
                f"{tally.failed:,} of {tally.seen:,} images failed ({codes}), more than"
                f" --max-failures {limit}: see {self.failed_file}. The job's state is kept:"
                " --resume with a higher --max-failures continues, --overwrite starts again"
            )
        if journal.units == 0 and next(self.source.items(), None) is None:
            skipped = f" ({skipped_text(not_images)})" if not_images else ""
            raise DataError(
                f"{self.plan.input} holds no images{skipped}; looked for {', '.join(SUFFIXES)}"
                " in folders and archives, or rows in a table"
            )
        return self._finish(journal.path, tally, not_images)

    def _units(self, not_images: Counter[str] | None = None) -> Iterator[Unit]:
        """The units of this job's shard; *not_images* as in `Input.items`."""
        index, count = self.plan.shard
        return itertools.islice(units_of(self.source.items(not_images)), index, None, count)

    def _remaining(self, journal: Journal, not_images: Counter[str]) -> Iterator[Unit]:
        """The units that *journal* does not hold yet.

        Raises `DataError` if the input does not begin with the units that it holds.
        """
        units = self._units(not_images)
        if journal.units:
            last = next(itertools.islice(units, journal.units - 1, None), None)
            if last is None or last.digest != journal.digest:
                raise DataError(
                    f"{self.plan.input} is not what it was when the job was begun: other, more or"
                    f" fewer rows among the first {journal.tally.seen:,}. Bring it back as it was"
                    " and continue with --resume, or start again with --overwrite"
                )
        return units

    def _count(self, stop: threading.Event) -> int | None:
        """Images in all, or up to *stop*; None if listing them again costs too much or fails."""
        if self.source.cheap:
            # The job itself meets the same error and reports it.
            with suppress(LoupeError, OSError, ValueError):
                units = itertools.takewhile(lambda _: not stop.is_set(), self._units())
                return sum(len(unit.items) for unit in units)
        return None

    def _finish(self, journal: Path, tally: Tally, not_images: Counter[str]) -> dict[str, Any]:
        """Write the dead-letter file, the summary, and last the output: it marks a finished job."""
        columns = self._columns(tally)
        self._write_failed(journal, tally)
        summary = {
            "job": self.plan.digest,
            "input": self.plan.input,
            "output": self.out,
            **summarise(tally, self.classifier.manifest, model=self.plan.model),
            "not_images": dict(not_images.most_common()),
            "renamed": columns.renamed,
        }
        text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        with replaced(self.summary_file) as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))
        write_output(read_records(journal), self.out, columns, partition_by=self.partition_by)
        return summary

    def _columns(self, tally: Tally) -> OutputColumns:
        manifest = self.classifier.manifest
        return OutputColumns(
            self.plan.columns,
            tally.kinds,
            tuple(plain_text(label) for label in manifest.labels),
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
                    values = (row, item.path, fault.code, fault.reason)
                    letter = dict(zip(DEAD_LETTER, values, strict=True))
                    letter |= {names[name]: value for name, value in item.extra}
                    stream.write(json_line(letter))


def local_engine(job: Job, *, options: ScoringOptions, lanes: int = 0) -> Engine:
    """The engine of this machine, with *lanes* threads; 0 means the cores of the cgroup."""
    reader = Reader(job.source.base, max_bytes=job.plan.max_image_bytes)
    return lambda units: run_local(
        units,
        reader=reader,
        model=job.classifier.model,
        options=options,
        threads=lanes or threads_per_worker(1),
    )


def _absolute(place: str) -> str:
    return place.rstrip("/") if is_remote(place) else os.path.realpath(local_path(place))


def _stem(out: str) -> str:
    """*out* without its ending."""
    folder, slash, name = out.rstrip("/").rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"

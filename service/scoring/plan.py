"""What a job must do (its plan), and the state folder from which it resumes."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from models.atomic_files import write_durably
from models.errors import ConfigError, ScoringError
from service.scoring.input.items import UNIT_ITEMS
from service.scoring.input.places import is_remote, local_path, raising_storage_lost
from service.scoring.output.tally import Tally

PLAN_FILE, JOURNAL_FILE, LOCK_FILE = "job.json", "journal.bin", "lock"
SHARE_FROM = 1000
"""Images after which a share of failures may end the job early."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that an answer depends on. A job is resumed only with the plan that it began with."""

    input: str
    path_column: str
    carry: tuple[str, ...] | None
    model: str
    """`name:version`."""
    package: str
    """SHA-256 of the model's manifest, which holds the hashes of everything else."""
    precision: str
    """Of the session: on some CPUs the fp32 graph of an int8 package answers."""
    columns: tuple[str, ...]
    top_k: int
    batch_size: int
    shard: tuple[int, int]
    max_image_bytes: int
    unit_items: int = UNIT_ITEMS

    @property
    def text(self) -> str:
        """The plan as its file holds it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def digest(self) -> str:
        """A short hash of the plan."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FailureLimit:
    """How many images may fail: a count, a share, or any number."""

    count: int | None = None
    share: float | None = None

    def exceeded(self, tally: Tally, *, final: bool) -> bool:
        """Whether more failed. A share is judged after `SHARE_FROM` images and at the end."""
        if self.count is not None:
            return tally.failed > self.count
        return (
            self.share is not None
            and (final or tally.seen >= SHARE_FROM)
            and tally.failed > self.share * tally.seen
        )

    def __str__(self) -> str:
        return str(self.count) if self.share is None else f"{self.share:.4g} of all"


def parse_failure_limit(text: str | None) -> FailureLimit:
    """*text* as `N`, `0.01` or `1%`. Raises `ConfigError`."""
    if text is None:
        return FailureLimit()
    if text.isascii() and text.isdecimal():
        return FailureLimit(count=int(text))
    with suppress(ValueError):
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
        if 0.0 <= share <= 1.0 and {*"%."} & {*text}:
            return FailureLimit(share=share)
    raise ConfigError(
        f"--max-failures {text!r}: expected a count such as 100, or a share such as 0.01 or 1%"
    )


def parse_shard(text: str | None) -> tuple[int, int]:
    """*text* `I/N` as (I, N), 0 <= I < N; (0, 1) without one. Raises `ConfigError`."""
    index, _, count = (text or "0/1").partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise ConfigError(
        f"--shard {text!r}: expected I/N with I from 0 to N - 1, such as 0/8 for the first of eight"
    )


def state_folder(out: str, state: Path | None) -> Path:
    """*state*, or a folder beside *out*, or in the working directory if *out* is a URL."""
    if state is not None:
        return state
    plain = out.rstrip("/")
    return Path(f"{plain.rpartition('/')[2] if is_remote(plain) else local_path(plain)}.job")


@contextmanager
def state_of(folder: Path, plan: Plan, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The job's state *folder*, locked for this process, for *plan*.

    Raises `ConfigError` if another job's state is there, or this job's without *resume*.
    """
    with raising_storage_lost(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ScoringError(
                f"another process works on the job in {folder}; let it end, or stop it"
            ) from error
        _begin_or_resume(folder, plan, resume=resume, overwrite=overwrite)
        yield folder


def _begin_or_resume(folder: Path, plan: Plan, *, resume: bool, overwrite: bool) -> None:
    path = folder / PLAN_FILE
    with raising_storage_lost(str(folder)):
        is_new = overwrite or not path.exists()
        if is_new:
            (folder / JOURNAL_FILE).unlink(missing_ok=True)
            write_durably(path, plan.text.encode())
        before = path.read_text(encoding="utf-8")
    if not (is_new or resume):
        raise ConfigError(
            f"{folder} holds an interrupted job: continue with --resume, or start again"
            " with --overwrite"
        )
    if before != plan.text:
        raise ConfigError(
            f"{folder} holds another job: {_difference(before, plan)}. Ask for the same, or start"
            " again with --overwrite"
        )


def _difference(before: str, plan: Plan) -> str:
    try:
        old = json.loads(before)
    except ValueError:
        return f"{PLAN_FILE} is damaged"
    new = json.loads(plan.text)
    changed = [
        f"{name} was {old.get(name)!r} and is now {value!r}"
        for name, value in new.items()
        if old.get(name) != value
    ]
    return ", ".join(changed) or "of another release"


def clear_state(folder: Path) -> None:
    """Remove the state of a finished job, and no other files."""
    with raising_storage_lost(str(folder)):
        for name in (JOURNAL_FILE, PLAN_FILE, LOCK_FILE):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files
            folder.rmdir()

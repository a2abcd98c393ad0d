"""Images that break while a run trains: left out, counted, and listed in `quarantine.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import DataError
from training.distributed import Processes
from training.progress import CONSOLE, shown

QUARANTINE_FILE = "quarantine.jsonl"


@dataclass
class Quarantine:
    """The images that broke since a run began. Too many end the run.

    The next readable training image replaces a broken one, so that batches keep their size. A
    broken validation image does not count in the accuracy. An image stays in quarantine until the
    process ends. A resumed run tries it again.
    """

    source: str
    images: int
    """Images of the run, with those that were left out from the start."""
    left_out: int = 0
    most: float = 0.0
    """Share of *images* that may be left out or broken, 0 to 1."""
    broken: dict[tuple[str, str], str] = field(default_factory=dict)
    """Split and name -> reason."""
    epoch: int = 0
    """The epoch that is being trained; 0 before the first one."""
    _folder: Path | None = None
    _settled: set[tuple[str, str]] = field(default_factory=set)
    """Images that all processes know of."""

    def holds(self, split: str, name: str) -> bool:
        """Whether image *name* of *split* is broken, and need not be tried again."""
        return (split, name) in self.broken

    def count(self, split: str) -> int:
        """The number of broken images of *split*."""
        return sum(of == split for of, _ in self.broken)

    @property
    def room(self) -> int:
        """How many more images may break; negative once they are too many."""
        return int(self.most * self.images) - self.left_out - len(self.broken)

    def list_in(self, folder: Path) -> None:
        """List broken images in run *folder*: those known already, and those to come."""
        self._folder = folder
        path = folder / QUARANTINE_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        listed = {(line["split"], line["name"]) for line in map(json.loads, lines)}
        for key in self.broken:
            if key not in listed:
                self._list(*key)

    def add(self, split: str, name: str, reason: str) -> None:
        """Take in image *name* of *split*. Raises `DataError` if there are too many."""
        self._take(split, name, reason)
        self._check()

    def settle(self, processes: Processes) -> None:
        """Tell every process what any of them has found.

        Raises `DataError` in the main process if there are too many, and ends the others.
        """
        own = [[*key, reason] for key, reason in self.broken.items() if key not in self._settled]
        for found in processes.collected(json.dumps(own).encode()):
            for split, name, reason in json.loads(found):
                self._take(split, name, reason)
        self._settled = set(self.broken)
        with processes.one_fate():
            if processes.main:
                self._check()

    def _check(self) -> None:
        if self.room >= 0 or not self.broken:
            return
        (_, name), reason = next(reversed(self.broken.items()))
        raise DataError(
            f"{self.source}: {self.left_out + len(self.broken)} of {self.images} images cannot be"
            f" read, {self.left_out} before training and {len(self.broken)} since, such as {name}:"
            f" {reason}. Up to {self.most:.1%} would be left out (max_unreadable_share). Put them"
            " back, and continue with `loupe train --resume`: all complete epochs are saved"
        )

    def _take(self, split: str, name: str, reason: str) -> None:
        if not self.holds(split, name):
            self.broken[split, name] = reason
            self._list(split, name)

    def _list(self, split: str, name: str) -> None:
        if self._folder is None:
            return
        reason = self.broken[split, name]
        CONSOLE.print(f"[yellow]quarantined[/] {shown(f'{name} ({split}): {reason}')}")
        line = {"epoch": self.epoch, "split": split, "name": name, "reason": reason}
        with (self._folder / QUARANTINE_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

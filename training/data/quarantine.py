"""Images that break while a run goes on: left out, counted, listed in `quarantine.jsonl`, and the
end of the run above a set share.

A training image that can no longer be read is stood in for by the next one of the data set that
can, so that batches keep their size, every process has as many, and a run with the same broken
images is the same run. A validation image is left out of the accuracy. What is broken stays out for
as long as the process lives; a resumed run looks at every image anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.errors import DataError
from training.distributed import Processes
from training.progress import CONSOLE, shown

QUARANTINE_FILE = "quarantine.jsonl"


class Quarantine:
    """The images that broke since a run began, by split and name, and how many of them it bears."""

    def __init__(
        self,
        source: str,
        *,
        images: int,
        left_out: int = 0,
        most: float = 0.0,
        broken: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """*images* images of *source*, of which *left_out* were unreadable from the start.

        *broken* maps (split, name) to a reason. The run ends when the share of both passes *most*.
        """
        self._source, self._images, self._left_out, self._most = source, images, left_out, most
        self.broken = dict(broken or {})
        self.epoch = 0
        """That is being trained; 0 before the first one, and in the check before a run goes on."""
        self._folder: Path | None = None
        self._told: set[tuple[str, str]] = set()
        """By this process to the others, or by the others to this one."""

    def holds(self, split: str, name: str) -> bool:
        """That image is broken, and need not be tried again."""
        return (split, name) in self.broken

    def count(self, split: str) -> int:
        """Broken images of *split*."""
        return sum(of == split for of, _ in self.broken)

    @property
    def room(self) -> int:
        """How many more images may break; negative once they are too many."""
        return int(self._most * self._images) - self._left_out - len(self.broken)

    def list_in(self, folder: Path) -> None:
        """From now on, list what breaks in run *folder*; and what is known already, but for what an
        earlier process has listed.
        """
        self._folder = folder
        path = folder / QUARANTINE_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        listed = {(line["split"], line["name"]) for line in map(json.loads, lines)}
        for (split, name), reason in self.broken.items():
            if (split, name) not in listed:
                self._list(split, name, reason)

    def add(self, split: str, name: str, reason: str) -> None:
        """Take in image *name* of *split*. Raises `DataError` if there are more than a run bears."""
        self._take(split, name, reason)
        self.check()

    def settle(self, processes: Processes) -> None:
        """Every process knows afterwards what any has found.

        Raises `DataError` in the main one, and ends the others, if that is too much.
        """
        own = [[*key, reason] for key, reason in self.broken.items() if key not in self._told]
        for found in processes.collected(json.dumps(own).encode()):
            for split, name, reason in json.loads(found):
                self._take(split, name, reason)
        self._told = set(self.broken)
        with processes.one_fate():
            if processes.main:
                self.check()

    def check(self) -> None:
        """Raises `DataError` if more images are broken than a run bears."""
        if self.room >= 0 or not self.broken:
            return
        (_, name), reason = next(reversed(self.broken.items()))
        total = self._left_out + len(self.broken)
        raise DataError(
            f"{self._source}: {total} of {self._images} images cannot be read, {self._left_out}"
            f" before training and {len(self.broken)} since, such as {name}: {reason}. Up to"
            f" {self._most:.1%} would be left out (max_unreadable_share). Put them back, and go on"
            " with `loupe train --resume`: all whole epochs are saved"
        )

    def _take(self, split: str, name: str, reason: str) -> None:
        if self.holds(split, name):
            return
        self.broken[split, name] = reason
        if self._folder is not None:
            self._list(split, name, reason)

    def _list(self, split: str, name: str, reason: str) -> None:
        assert self._folder is not None
        CONSOLE.print(f"[yellow]quarantined[/] {shown(f'{name} ({split}): {reason}')}")
        with (self._folder / QUARANTINE_FILE).open("a", encoding="utf-8") as stream:
            stream.write(
                json.dumps({"epoch": self.epoch, "split": split, "name": name, "reason": reason})
                + "\n"
            )

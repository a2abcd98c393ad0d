"""The history of a model in the store, and the version that a rollback goes to."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from models.atomic_files import user_name, write_durably
from models.errors import StoreError
from models.files import read_file
from models.messages import one_line
from models.package.manifest import StrictRecord

HISTORY_FILE = "history.jsonl"

Action = Literal["publish", "promote", "rollback", "gc"]


class HistoryEntry(StrictRecord):
    """One line of `history.jsonl`."""

    when: str
    """UTC, ISO 8601."""
    who: str
    why: str
    action: Action
    versions: tuple[int, ...]
    """The version that was published, promoted or rolled back to; all that were removed."""
    alias: str | None
    """The alias that a promote or rollback moved."""
    aliases: dict[str, int]
    """All aliases as they were afterwards."""


def new_entry(
    action: Action,
    versions: Sequence[int],
    *,
    aliases: dict[str, int],
    alias: str | None = None,
    why: str = "",
    who: str | None = None,
) -> HistoryEntry:
    """An entry of this moment, by *who* or else the user that this process runs as.

    Both texts are kept as one line.
    """
    return HistoryEntry(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        who=one_line(who or user_name()),
        why=one_line(why),
        action=action,
        versions=tuple(versions),
        alias=alias,
        aliases=aliases,
    )


def read_history(folder: Path) -> list[HistoryEntry]:
    """The entries in model folder *folder*, oldest first; none if nothing was recorded.

    Raises `StoreError` for a damaged line.
    """
    path = folder / HISTORY_FILE
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        try:
            entries.append(HistoryEntry.model_validate_json(line))
        except ValidationError as error:
            raise StoreError(
                f"{path}, line {number} is damaged: {error.errors()[0]['msg']}. Remove that line,"
                " or restore the file"
            ) from error
    return entries


def write_history(folder: Path, entries: Sequence[HistoryEntry]) -> None:
    """Replace the history in model folder *folder* by *entries*.

    The file is small: a whole new one cannot be left with half a line.
    """
    write_durably(
        folder / HISTORY_FILE, "".join(f"{entry.model_dump_json()}\n" for entry in entries).encode()
    )


def settle(
    entries: list[HistoryEntry], aliases: dict[str, int], *, versions: Container[int]
) -> tuple[list[HistoryEntry], dict[str, int]]:
    """History and aliases after a command that may have been killed between writing the two.

    A command writes its history line first, then does its work (a publish renames its folder), then
    replaces `aliases.json`. So only the last line can be newer than the aliases. If it is a publish
    whose version exists, the publish has happened, and its aliases hold. Any other such line is
    about something that did not happen, and is dropped.
    """
    if not entries:
        return entries, aliases
    last, before = entries[-1], entries[-2].aliases if len(entries) > 1 else {}
    if aliases != before or last.aliases == before:
        return entries, aliases
    if last.action == "publish" and last.versions[0] in versions:
        return entries, last.aliases
    return entries[:-1], aliases


def previous_version(
    entries: Sequence[HistoryEntry], *, alias: str, current: int, versions: Container[int]
) -> int | None:
    """The version among *versions* that *alias* had before *current*.

    A rollback undoes a promotion, so a second rollback goes one further back, and never to the
    version that the first one left.
    """
    past: list[int] = []
    for entry in entries:
        version = entry.aliases.get(alias)
        if version is None:
            continue
        if entry.action == "rollback" and entry.alias == alias and version in past:
            while past[-1] != version:
                past.pop()
        elif past[-1:] != [version]:
            past.append(version)
    if past[-1:] == [current]:
        past.pop()
    return next(
        (version for version in reversed(past) if version != current and version in versions), None
    )

"""The model store: versioned packages in a folder, and the aliases that say which version is meant.

    <store>/<name>/<version>/        a package; appears complete, by one rename, and never changes
    <store>/<name>/aliases.json      {"production": 3, "candidate": 4}
    <store>/<name>/history.jsonl     who, when and why
    <store>/<name>/.lock             held while one of those changes; reading needs no lock
    <store>/<name>/.staging-*        a publish or gc at work, or what a killed one left

Hidden folders stay inside the model's own, where Triton ignores what is no number.
`models.store.history.settle` says what a kill between two writes means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from models.atomic_files import (
    STAGING_PREFIX,
    clear_dead,
    is_full,
    locked,
    rename_durably,
    staging,
    storage_errors,
    sync_folder,
    write_durably,
)
from models.errors import StoreError, UnknownModel, UnknownVersion
from models.files import read_file
from models.package.manifest import Positive
from models.package.verify import verify_package
from models.store.history import (
    HistoryEntry,
    new_entry,
    previous_version,
    read_history,
    settle,
    write_history,
)
from models.store.names import check_name, is_name
from models.store.transfer import copy_package

ALIASES_FILE = "aliases.json"
LOCK_FILE = ".lock"
PRODUCTION = "production"
CANDIDATE = "candidate"

_Aliases = TypeAdapter(dict[str, Positive])


@dataclass(frozen=True)
class ModelRef:
    """One version of a model in the store."""

    name: str
    version: int
    path: Path

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


_State = tuple[list[HistoryEntry], dict[str, int], list[int]]
"""History, aliases and versions of a model, as they are meant."""


class Store:
    """The store in folder *root*, which is made by the first publish.

    Any number of processes may use it at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Models that have a version, in order."""
        with storage_errors(self.root, in_store=True):
            if not self.root.is_dir():
                return []
            return sorted(
                path.name
                for path in self.root.iterdir()
                if is_name(path.name) and self._versions(path.name)
            )

    def versions(self, name: str) -> list[int]:
        """Versions of model *name*, ascending. Raises `UnknownModel`."""
        with storage_errors(self.root / name, in_store=True):
            versions = self._versions(name) if is_name(name) else []
        if not versions:
            known = self.names()
            which = (
                f"it has {', '.join(known)}"
                if known
                else "it is empty: `loupe publish PACKAGE --name NAME` puts one there"
            )
            raise UnknownModel(f"no model {name!r} in the store {self.root}; {which}")
        return versions

    def aliases(self, name: str) -> dict[str, int]:
        """Version of each alias of model *name*.

        Raises `UnknownModel`, or `StoreError` if `aliases.json` is damaged.
        """
        return self._aliases(name, self.versions(name))

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """A value that changes when an alias of model *name* moves; None while it has no aliases.

        It costs one `stat`, and so may be asked every second.
        """
        try:
            found = (self.root / name / ALIASES_FILE).stat()
        except FileNotFoundError:
            return None
        # The file is replaced and never edited, so that the inode changes even where the clock of
        # the file system is coarse.
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def history(self, name: str) -> list[HistoryEntry]:
        """Every publish, promote, rollback and gc of model *name*, oldest first.

        Raises `UnknownModel`.
        """
        versions = self.versions(name)
        with storage_errors(self.root / name, in_store=True):
            aliases = self._aliases(name, versions)
            entries, _ = settle(read_history(self.root / name), aliases, versions=versions)
        return entries

    def resolve(self, reference: str) -> ModelRef:
        """The version that *reference* means: `name` (for production), `name@alias` or `name:3`.

        Raises `UnknownModel` with the names that exist, `UnknownVersion` with the versions and
        aliases that do.
        """
        name, colon, number = reference.partition(":")
        name, at, alias = name.partition("@")
        versions = self.versions(name)
        aliases = self._aliases(name, versions)
        if colon:
            found = next(
                (version for version in versions if str(version) == number and not at), None
            )
        else:
            found = aliases.get(alias if at else PRODUCTION)
        # Asked of the disk and not of `versions`, which a publish may have outdated by now.
        if found is None or not self._ref(name, found).path.is_dir():
            what = f"version {number!r}" if colon else f"alias {(alias if at else PRODUCTION)!r}"
            raise UnknownVersion(
                f"model {name!r} has no {what}; {_what_there_is(versions, aliases)}"
            )
        return self._ref(name, found)

    def publish(
        self, package: Path, *, name: str, why: str = "", who: str | None = None
    ) -> ModelRef:
        """Verify the package in folder *package* and copy it in as the next version of *name*.

        `candidate` moves to it; the first version becomes `production` as well. Numbers are never
        used twice, not even after gc. Raises `PackageError` for a package that may not be served,
        `StoreError` if the store cannot be written.
        """
        check_name("model name", name)
        verified = verify_package(package)
        folder = self.root / name
        with storage_errors(folder, in_store=True):
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.root)
            with staging(folder, lock=folder / LOCK_FILE) as place:
                copy_package(verified, place / "package")
                with self._changing(name) as (entries, aliases, versions):
                    used = [number for entry in entries for number in entry.versions]
                    version = 1 + max([0, *versions, *used])
                    aliases[CANDIDATE] = version
                    if version == 1:
                        aliases[PRODUCTION] = version
                    entry = new_entry("publish", [version], aliases=aliases, why=why, who=who)
                    write_history(folder, [*entries, entry])
                    rename_durably(place / "package", folder / str(version))
                    _write_aliases(folder, aliases)
        return self._ref(name, version)

    def promote(
        self,
        name: str,
        version: int,
        *,
        alias: str = PRODUCTION,
        why: str = "",
        who: str | None = None,
    ) -> ModelRef:
        """Let *alias* mean *version*, which is verified first.

        Raises `UnknownVersion`, `PackageError` or `StoreError`.
        """
        check_name("alias", alias)
        self.versions(name)
        with self._changing(name) as (entries, aliases, versions):
            if version not in versions:
                raise UnknownVersion(
                    f"model {name!r} has no version '{version}';"
                    f" {_what_there_is(versions, aliases)}"
                )
            aliases[alias] = version
            entry = new_entry("promote", [version], aliases=aliases, alias=alias, why=why, who=who)
            return self._move(name, [*entries, entry])

    def rollback(
        self, name: str, *, alias: str = PRODUCTION, why: str = "", who: str | None = None
    ) -> ModelRef:
        """Let *alias* mean the version that it had before its last promotion.

        The next rollback goes one further back. Raises as `promote`.
        """
        self.versions(name)
        with self._changing(name) as (entries, aliases, versions):
            there_is = _what_there_is(versions, aliases)
            if alias not in aliases:
                raise UnknownVersion(f"model {name!r} has no alias {alias!r}; {there_is}")
            current = aliases[alias]
            version = previous_version(entries, alias=alias, current=current, versions=versions)
            if version is None:
                raise StoreError(
                    f"{alias} of {name!r} is version {current}, and no earlier one is left to roll"
                    f" back to; {there_is}. `loupe models promote` sets any of them"
                )
            aliases[alias] = version
            entry = new_entry("rollback", [version], aliases=aliases, alias=alias, why=why, who=who)
            return self._move(name, [*entries, entry])

    def gc(self, name: str, *, keep: int = 3, why: str = "", who: str | None = None) -> list[int]:
        """Remove old versions of model *name*, and return them.

        Kept are the newest *keep* versions, every version that has an alias, and every version that
        a rollback would go to. Staging folders of killed processes are removed too.
        """
        if keep < 0:
            raise StoreError(
                f"keep is {keep}, expected how many of the newest versions to keep: 0 or more"
            )
        self.versions(name)
        folder = self.root / name
        with self._changing(name) as (entries, aliases, versions):
            clear_dead(folder)
            earlier = (
                previous_version(entries, alias=alias, current=current, versions=versions)
                for alias, current in aliases.items()
            )
            kept = {*versions[max(len(versions) - keep, 0) :], *aliases.values(), *earlier}
            removed = [version for version in versions if version not in kept]
            if removed:
                entries.append(new_entry("gc", removed, aliases=aliases, why=why, who=who))
                self._remove(name, removed, entries)
        return removed

    @contextmanager
    def _changing(self, name: str) -> Iterator[_State]:
        """The model's state under its lock. What a killed command left unfinished is settled."""
        folder = self.root / name
        with storage_errors(folder, in_store=True), locked(folder / LOCK_FILE):
            versions = self._versions(name)
            found_aliases, found_entries = self._aliases(name, versions), read_history(folder)
            entries, aliases = settle(found_entries, found_aliases, versions=versions)
            if len(entries) != len(found_entries):
                write_history(folder, entries)
            if aliases and (aliases != found_aliases or not (folder / ALIASES_FILE).exists()):
                _write_aliases(folder, aliases)
            yield entries, aliases, versions

    def _move(self, name: str, entries: list[HistoryEntry]) -> ModelRef:
        """Do what the last of *entries* says: a promotion or a rollback."""
        last = entries[-1]
        ref = self._ref(name, last.versions[0])
        verify_package(ref.path)
        write_history(self.root / name, entries)
        _write_aliases(self.root / name, last.aliases)
        return ref

    def _remove(self, name: str, removed: list[int], entries: list[HistoryEntry]) -> None:
        folder = self.root / name
        recorded = False
        try:
            write_history(folder, entries)
            recorded = True
        except OSError as error:
            # On a full disk, which gc is for, the line is written when there is room.
            if not is_full(error):
                raise
        for version in removed:
            rename_durably(folder / str(version), folder / f"{STAGING_PREFIX}removed-{version}")
        clear_dead(folder)
        if not recorded:
            write_history(folder, entries)

    def _versions(self, name: str) -> list[int]:
        folder = self.root / name
        if not folder.is_dir():
            return []
        numbered = (
            path
            for path in folder.iterdir()
            if path.name.isascii() and path.name.isdigit() and not path.name.startswith("0")
        )
        return sorted(
            int(path.name) for path in numbered if path.is_dir() and not path.is_symlink()
        )

    def _aliases(self, name: str, versions: list[int]) -> dict[str, int]:
        path = self.root / name / ALIASES_FILE
        with storage_errors(path, in_store=True):
            try:
                content = read_file(path)
            except FileNotFoundError:
                # Only the first publish finds no aliases.json. Between its rename and its aliases
                # version 1 is there, and means this.
                return {CANDIDATE: 1, PRODUCTION: 1} if versions == [1] else {}
        try:
            return _Aliases.validate_json(content, strict=True)
        except ValidationError as error:
            raise StoreError(
                f"{path} is damaged: {error.errors()[0]['msg']}. Write it again, such as"
                f' {{"{PRODUCTION}": {versions[-1]}}}'
            ) from error

    def _ref(self, name: str, version: int) -> ModelRef:
        return ModelRef(name=name, version=version, path=self.root / name / str(version))


def _what_there_is(versions: list[int], aliases: dict[str, int]) -> str:
    meant = (
        ", ".join(f"{alias} = {version}" for alias, version in sorted(aliases.items())) or "none"
    )
    return f"versions: {', '.join(map(str, versions))}; aliases: {meant}"


def _write_aliases(folder: Path, aliases: dict[str, int]) -> None:
    write_durably(
        folder / ALIASES_FILE, (json.dumps(dict(sorted(aliases.items()))) + "\n").encode()
    )

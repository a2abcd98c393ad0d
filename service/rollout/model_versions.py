"""A served model: its versions are opened, swapped, and closed when no request uses them any more.

    selected -> opened (verified, warm, golden images answered) -> primary or other
             -> previous, still warm -> retired -> closed

Everything but the opening happens on the event loop, and a swap is one assignment: a request sees
one version or the other. A request holds its pipeline until its task ends, so that a version closes
only after the answer to its last request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from models.errors import LoupeError, UnknownModel
from models.store.store import ModelRef, Store
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline
from service.observe.metrics import FOLLOW_FAILURES, LOAD_FAILURES, METRICS, SWAPS
from service.rollout.aliases import Complaints, ModelSelection, Retry
from service.rollout.traffic import in_share

log = logging.getLogger("loupe")

Open = Callable[[ModelRef], Awaitable[Pipeline]]
"""Gives the running pipeline of a version, verified and warm. Raises `LoupeError`."""


@dataclass
class OpenVersion:
    """A running pipeline, and how many requests hold it."""

    pipeline: Pipeline
    free: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no request holds the pipeline, or if closing must not wait for them any more."""
    _users: int = 0

    def lend(self) -> Pipeline:
        """The pipeline, held until the current task ends."""
        task = asyncio.current_task()
        if task is not None:
            self._users += 1
            self.free.clear()
            task.add_done_callback(self._give_back)
        return self.pipeline

    async def close(self) -> None:
        """Close the pipeline once it is free. It must not be lent any more."""
        if self._users:
            await self.free.wait()
        await self.pipeline.__aexit__(None, None, None)

    def _give_back(self, _: asyncio.Task[object]) -> None:
        self._users -= 1
        if not self._users:
            self.free.set()


class ModelVersions:
    """One model: its open versions, and the version of each followed alias in this worker.

    At most the versions of its primary and its others are open, and the previous primary.
    """

    def __init__(
        self,
        selection: ModelSelection,
        *,
        store: Store,
        open_: Open,
        canary: str = "",
        canary_share: float = 0.0,
    ) -> None:
        self.selection = selection
        self._store = store
        self._open = open_
        self._canary = f"@{canary}"
        self._canary_share = canary_share if selection.primary.startswith("@") else 0.0
        self._open_versions: dict[int, OpenVersion] = {}
        self._version_of: dict[str, int] = {}
        """By the end of a reference: `@production`, `:3`."""
        self._previous: int | None = None
        self._retiring: dict[asyncio.Task[None], OpenVersion] = {}
        self.retry = Retry()
        """Due when a version that could not be opened is to be tried again."""
        self._complaints = Complaints()

    @property
    def is_followed(self) -> bool:
        """Some of its versions are those of aliases."""
        return any(end.startswith("@") for end in (self.selection.primary, *self.selection.others))

    @property
    def primary(self) -> Classifier:
        """The version that answers by default."""
        return self._open_versions[self._version_of[self.selection.primary]].pipeline.classifier

    def version_of(self, alias: str) -> Classifier | None:
        """The version of *alias* in this worker; None if there is none."""
        version = self._version_of.get(f"@{alias}")
        return None if version is None else self._open_versions[version].pipeline.classifier

    def open_classifiers(self) -> list[Classifier]:
        """Every open version that requests may ask for."""
        return [one.pipeline.classifier for one in self._open_versions.values()]

    def described(self) -> dict[str, object]:
        """Its name, the version that answers by default, all open ones, and followed aliases."""
        aliases = {end[1:]: of for end, of in self._version_of.items() if end.startswith("@")}
        return {
            "name": self.selection.name,
            "version": self.primary.version,
            "versions": sorted(self._open_versions),
            "aliases": aliases,
        }

    def pipeline(self, version: str | None, *, client: str) -> Pipeline:
        """The pipeline of *version*, a number or an alias. Raises `UnknownModel`.

        None is the primary, or the canary for its share of the clients.
        """
        if version is None:
            canary = self._version_of.get(self._canary)
            in_canary = in_share(self._canary_share, model=self.selection.name, client=client)
            primary = self._version_of[self.selection.primary]
            return self._open_versions[canary if canary and in_canary else primary].lend()
        found = self._version_of.get(f"@{version}") or self._version_of.get(f":{version}")
        if found is None:
            found = next((one for one in self._open_versions if str(one) == version), None)
        if found is None:
            aliases = sorted(end[1:] for end in self._version_of if end.startswith("@"))
            served = ", ".join([*map(str, sorted(self._open_versions)), *aliases])
            raise UnknownModel(
                f"version {version[:40]!r} of {self.selection.name} is not served; served: {served}"
            )
        return self._open_versions[found].lend()

    async def open(self, last_good: int | None) -> None:
        """Open the selected versions.

        If the primary is refused, *last_good* takes its place: the version that the other workers
        answer with. Raises `LoupeError` with the reason if no version can answer.
        """
        resolved = await asyncio.to_thread(self.selection.resolve, self._store)
        primary = resolved.pop(self.selection.primary)
        try:
            await self._move(self.selection.primary, primary)
        except LoupeError as error:
            if last_good is None or last_good == primary.version:
                LOAD_FAILURES.labels(self.selection.name).inc()
                raise
            self._refused(str(primary), error, f"was refused, and version {last_good} continues")
            await self._move(
                self.selection.primary,
                await asyncio.to_thread(self._store.resolve, f"{self.selection.name}:{last_good}"),
            )
            self.retry.failed()
        await self._move_all(resolved)

    async def follow(self) -> None:
        """Serve the versions that the store's aliases mean now.

        One that cannot be opened costs a metric and a line in the log, and is tried again later.
        """
        try:
            resolved = await asyncio.to_thread(self.selection.resolve, self._store)
        except Exception as error:  # noqa: BLE001 - a store that is away must not end this task
            FOLLOW_FAILURES.inc()
            self._refused(self.selection.name, error, "continues as it is")
            self.retry.failed()
            return
        self._complaints.succeeded(self.selection.name)
        if await self._move_all(resolved):
            self.retry.succeeded()
        else:
            self.retry.failed()

    async def close(self) -> None:
        """Answer what was accepted, and close every version."""
        self._version_of.clear()
        self._previous = None
        self._retire()
        retiring = dict(self._retiring)
        for version in retiring.values():
            # A client that stalls must not delay the end.
            version.free.set()
        await asyncio.gather(*retiring)

    async def _move_all(self, resolved: dict[str, ModelRef]) -> bool:
        """Move each end to its version if that can be opened; False if one could not."""
        refused: set[int] = set()
        for end, ref in resolved.items():
            if ref.version in refused:
                continue
            try:
                await self._move(end, ref)
                self._complaints.succeeded(str(ref))
            except Exception as error:  # noqa: BLE001 - the open versions continue
                refused.add(ref.version)
                self._refused(str(ref), error, "was refused and changes nothing")
        for end in self._version_of.keys() - resolved.keys() - {self.selection.primary}:
            del self._version_of[end]
        self._retire()
        return not refused

    def _refused(self, what: str, error: Exception, consequence: str) -> None:
        """Count that *what* could not be opened, and log it once, with the *consequence*.

        Only an unexpected error has a traceback: elsewhere it would bury the reason.
        """
        LOAD_FAILURES.labels(self.selection.name).inc()
        if self._complaints.is_new(what, error):
            log.error(
                "%s %s: %s",
                what,
                consequence,
                error,
                exc_info=None if isinstance(error, LoupeError) else error,
            )

    async def _move(self, end: str, ref: ModelRef) -> None:
        """Let *end* mean *ref* from now on, opened if necessary."""
        before = self._version_of.get(end)
        if before == ref.version:
            return
        if ref.version not in self._open_versions:
            self._open_versions[ref.version] = OpenVersion(await self._open(ref))
        self._version_of[end] = ref.version
        if before is not None:
            log.info("serving: %s%s is version %d, was %d", ref.name, end, ref.version, before)
        if end == self.selection.primary:
            self._previous = before
            # With the first version, the metrics begin at zero.
            SWAPS.labels(ref.name).inc(0 if before is None else 1)
            LOAD_FAILURES.labels(ref.name).inc(0)
        self._retire()

    def _retire(self) -> None:
        """Close the versions without a role, each after the answer to its last request."""
        roles = {*self._version_of.values(), self._previous}
        for version in [one for one in self._open_versions if one not in roles]:
            closing = self._open_versions.pop(version)
            task = asyncio.create_task(
                closing.close(), name=f"retire {self.selection.name}:{version}"
            )
            self._retiring[task] = closing
            task.add_done_callback(self._retiring.pop)
        METRICS.serving(
            self.selection.name,
            [
                self._open_versions[version].pipeline.classifier
                for version in set(self._version_of.values())
            ],
        )

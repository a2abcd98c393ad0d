"""The models of one worker, each in the versions that are wanted now: opened, swapped, and closed
when nobody uses them any more.

    wanted -> opened (verified, warm, golden images answered) -> primary or other -> previous, still
    warm -> retired -> closed

Everything but the opening happens on the event loop, and a swap is one assignment: a request sees
one version or the other. A request holds the pipeline that it was given until its task ends, so
that a version is closed only when its last request has its answer.
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
from service.rollout.aliases import Complaints, Retry, Wanted
from service.rollout.traffic import in_share

log = logging.getLogger("loupe")

Open = Callable[[ModelRef], Awaitable[Pipeline]]
"""The running pipeline of a version, verified and warm. Raises `LoupeError` with the reason."""


@dataclass
class Loaded:
    """An open pipeline, and how many requests hold it."""

    pipeline: Pipeline
    users: int = 0
    _let_go: asyncio.Event = field(default_factory=asyncio.Event)
    _hurried: bool = False

    def lend(self) -> Pipeline:
        """The pipeline, held until the task that asks ends."""
        task = asyncio.current_task()
        if task is not None:
            self.users += 1
            task.add_done_callback(self._give_back)
        return self.pipeline

    async def close(self) -> None:
        """Close the pipeline once nobody holds it, or it is hurried. Nobody new may be given it."""
        while self.users and not self._hurried:
            self._let_go.clear()
            await self._let_go.wait()
        await self.pipeline.__aexit__(None, None, None)

    def hurry(self) -> None:
        """Wait for no more than what the pipeline has accepted: a client that stalls shall not hold
        up the end.
        """
        self._hurried = True
        self._let_go.set()

    def _give_back(self, _: asyncio.Task[object]) -> None:
        self.users -= 1
        self._let_go.set()


class Lane:
    """One model: the versions of it that are open, and what the followed aliases mean here.

    Bounded to the versions of its primary and its others, and one more: what was primary before.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        store: Store,
        open_: Open,
        canary: str = "",
        canary_share: float = 0.0,
    ) -> None:
        self.wanted = wanted
        self._store = store
        self._open = open_
        self._canary = f"@{canary}"
        self._canary_share = canary_share if wanted.is_followed else 0.0
        self._loaded: dict[int, Loaded] = {}
        self._meant: dict[str, int] = {}
        self._previous: int | None = None
        self._retiring: dict[asyncio.Task[None], Loaded] = {}
        self._retry = Retry()
        self._complaints = Complaints()

    @property
    def is_due(self) -> bool:
        """Something that is wanted could not be opened, and is to be tried again."""
        return self._retry.is_due

    @property
    def is_followed(self) -> bool:
        """Something of it may move."""
        return any(end.startswith("@") for end in (self.wanted.primary, *self.wanted.others))

    @property
    def primary(self) -> Classifier:
        """What answers by default."""
        return self._loaded[self._meant[self.wanted.primary]].pipeline.classifier

    def version_of(self, alias: str) -> Classifier | None:
        """What *alias* means here; None if nothing."""
        version = self._meant.get(f"@{alias}")
        return None if version is None else self._loaded[version].pipeline.classifier

    def pipeline(self, version: str | None, *, client: str) -> Pipeline:
        """The pipeline of *version*, a number or an alias; None is the primary, or the canary for
        its share of the clients. Raises `UnknownModel`.
        """
        if version is None:
            return self._loaded[self._for_client(client)].lend()
        found = self._meant.get(f"@{version}") or self._meant.get(f":{version}")
        if found is None:
            found = next((one for one in self._loaded if str(one) == version), None)
        if found is None:
            aliases = sorted(end[1:] for end in self._meant if end.startswith("@"))
            served = ", ".join([*map(str, sorted(self._loaded)), *aliases])
            raise UnknownModel(
                f"version {version[:40]!r} of {self.wanted.name} is not served; served: {served}"
            )
        return self._loaded[found].lend()

    async def open(self, last_good: int | None) -> None:
        """Open what is wanted.

        If the primary version is refused, *last_good* takes its place: what the other workers went
        on with.

        Raises `LoupeError` with the reason if there is nothing to answer with.
        """
        meant = await asyncio.to_thread(self.wanted.meant, self._store)
        primary = meant.pop(self.wanted.primary)
        try:
            await self._move(self.wanted.primary, primary)
        except LoupeError as error:
            if last_good is None or last_good == primary.version:
                LOAD_FAILURES.labels(self.wanted.name).inc()
                raise
            self._refused(str(primary), error, f"was refused, and version {last_good} goes on")
            await self._move(
                self.wanted.primary,
                await asyncio.to_thread(self._store.resolve, f"{self.wanted.name}:{last_good}"),
            )
            self._retry.failed()
        await self._move_all(meant)

    async def follow(self) -> None:
        """Bring what is served in line with the store.

        What cannot be opened changes nothing but a metric and a line in the log, and is tried again
        later.
        """
        try:
            meant = await asyncio.to_thread(self.wanted.meant, self._store)
        except Exception as error:  # noqa: BLE001 - a store that is away must not end the following
            FOLLOW_FAILURES.inc()
            self._refused(self.wanted.name, error, "goes on as it is")
            self._retry.failed()
            return
        self._complaints.settled(self.wanted.name)
        if await self._move_all(meant):
            self._retry.succeeded()
        else:
            self._retry.failed()

    async def close(self) -> None:
        """Answer what was accepted, and close every version."""
        self._meant.clear()
        self._previous = None
        self._retire()
        retiring = dict(self._retiring)
        for one in retiring.values():
            one.hurry()
        await asyncio.gather(*retiring)

    async def _move_all(self, meant: dict[str, ModelRef]) -> bool:
        """Let each end mean what it should, where that can be opened; whether all of it could."""
        refused: set[int] = set()
        for end, ref in meant.items():
            if ref.version in refused:
                continue
            try:
                await self._move(end, ref)
                self._complaints.settled(str(ref))
            except Exception as error:  # noqa: BLE001 - whatever it is, what is served goes on
                refused.add(ref.version)
                self._refused(str(ref), error, "was refused and changes nothing")
        for gone in self._meant.keys() - meant.keys() - {self.wanted.primary}:
            del self._meant[gone]
        self._retire()
        return not refused

    def _refused(self, what: str, error: Exception, so: str) -> None:
        """Count that *what* could not be opened, and say it once.

        Only what nobody foresaw has a traceback: elsewhere it would bury the reason.
        """
        LOAD_FAILURES.labels(self.wanted.name).inc()
        if self._complaints.is_new(what, error):
            log.error(
                "%s %s: %s",
                what,
                so,
                error,
                exc_info=None if isinstance(error, LoupeError) else error,
            )

    async def _move(self, end: str, ref: ModelRef) -> None:
        """Let *end* mean *ref* from now on."""
        before = self._meant.get(end)
        if before == ref.version:
            return
        if ref.version not in self._loaded:
            self._loaded[ref.version] = Loaded(await self._open(ref))
        self._meant[end] = ref.version
        if before is not None:
            log.info("serving: %s%s is version %d, was %d", ref.name, end, ref.version, before)
        if end == self.wanted.primary:
            self._previous = before
            # With the first version, the metrics begin at zero.
            SWAPS.labels(ref.name).inc(0 if before is None else 1)
            LOAD_FAILURES.labels(ref.name).inc(0)
        self._retire()

    def _retire(self) -> None:
        """Close what no longer has a role, once its last request is answered."""
        roles = {*self._meant.values(), self._previous}
        for version in [one for one in self._loaded if one not in roles]:
            loaded = self._loaded.pop(version)
            task = asyncio.create_task(loaded.close(), name=f"retire {self.wanted.name}:{version}")
            self._retiring[task] = loaded
            task.add_done_callback(self._retiring.pop)
        METRICS.serving(
            self.wanted.name,
            [self._loaded[version].pipeline.classifier for version in set(self._meant.values())],
        )

    def _for_client(self, client: str) -> int:
        canary = self._meant.get(self._canary) if self._canary_share else None
        if canary is not None and in_share(
            self._canary_share, model=self.wanted.name, client=client
        ):
            return canary
        return self._meant[self.wanted.primary]

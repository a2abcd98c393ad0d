"""Reading ahead: files are fetched by threads while those before them are decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from service.scoring.input.items import Fault, Item
from service.scoring.input.places import is_remote
from service.scoring.input.reader import Reader

AHEAD = 32
"""Files of a unit that are read ahead of decoding."""
LOCAL_READERS, REMOTE_READERS = 4, 32
LOCAL_GROUP = 8
"""Local files that one task reads: fewer hand-overs. A bucket answers each request late, so there each is a task."""


class ReadAhead:
    """Readers of whole units, with threads of their own."""

    def __init__(self, reader: Reader) -> None:
        self._read = reader.read
        self._local = ThreadPoolExecutor(LOCAL_READERS, thread_name_prefix="read")
        self._remote = ThreadPoolExecutor(REMOTE_READERS, thread_name_prefix="fetch")

    def of(self, items: Sequence[Item]) -> Iterator[bytes | Fault]:
        """The contents of *items* in order.

        The first ones are asked for now, by this call and not by the first step.
        """
        if any(is_remote(item.url) for item in items):
            return _Contents(items, self._read, self._remote, group=1)
        return _Contents(items, self._read, self._local, group=LOCAL_GROUP)

    def close(self) -> None:
        """Give up what was not begun; waits for nothing."""
        for readers in (self._local, self._remote):
            readers.shutdown(wait=False, cancel_futures=True)


class _Contents(Iterator[bytes | Fault]):
    """The contents of *items* in order, `AHEAD` of them being read while one is used."""

    def __init__(
        self,
        items: Sequence[Item],
        read: Callable[[Item], bytes | Fault],
        readers: ThreadPoolExecutor,
        *,
        group: int,
    ) -> None:
        self._groups = iter([items[at : at + group] for at in range(0, len(items), group)])
        self._read, self._readers = read, readers
        self._pending: deque[Future[list[bytes | Fault]]] = deque()
        self._ready: deque[bytes | Fault] = deque()
        for _ in range(max(1, AHEAD // group)):
            self._ask()

    def __next__(self) -> bytes | Fault:
        if not self._ready:
            if not self._pending:
                raise StopIteration
            self._ready.extend(self._pending.popleft().result())
            self._ask()
        return self._ready.popleft()

    def _ask(self) -> None:
        group = next(self._groups, None)
        if group is not None:
            self._pending.append(self._readers.submit(lambda: [self._read(item) for item in group]))

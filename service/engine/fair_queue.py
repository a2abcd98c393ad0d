"""The order in which images are taken: clients take turns, and interactive work passes bulk work.

Not thread-safe: whoever shares a queue holds its lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

BULK_TURN = 5
"""While both wait, every fifth item is a bulk one: bulk work gets slower, but never stops."""


class FairQueue(Generic[T]):
    """Clients take turns in the order in which they came, and each client's items keep their order.

    A client with one image waits for one image of each other client, however many those have.
    """

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self.arrived = threading.Condition(lock)
        """For threads that wait for an item, under *lock*."""
        self._interactive: OrderedDict[str, deque[T]] = OrderedDict()
        self._bulk: OrderedDict[str, deque[T]] = OrderedDict()
        self._length = 0
        self._passed = 0
        """Interactive items taken since the last bulk one, while bulk waited."""

    def __len__(self) -> int:
        return self._length

    def push(self, item: T, *, client: str = "", bulk: bool = False, first: bool = False) -> None:
        """Put *item* behind all others of its *client*; *first* puts it back before all others.

        Without names, all clients are one.
        """
        clients = self._bulk if bulk else self._interactive
        items = clients.setdefault(client, deque())
        if first:
            items.appendleft(item)
            clients.move_to_end(client, last=False)
        else:
            items.append(item)
        self._length += 1

    def pop(self) -> T:
        """The next item. Raises `IndexError` if there is none."""
        if not self._length:
            raise IndexError("the queue is empty")
        self._length -= 1
        if not self._bulk:
            return _next(self._interactive)
        if self._interactive and self._passed < BULK_TURN - 1:
            self._passed += 1
            return _next(self._interactive)
        self._passed = 0
        return _next(self._bulk)

    def remove(self, item: T, *, client: str = "", bulk: bool = False) -> None:
        """Take *item* out, which was pushed as this *client*'s.

        Raises `ValueError` if it is not there.
        """
        clients = self._bulk if bulk else self._interactive
        if client not in clients:
            raise ValueError(f"client {client!r} has nothing in the queue")
        clients[client].remove(item)
        self._length -= 1
        if not clients[client]:
            del clients[client]

    def heads(self) -> Iterator[T]:
        """The oldest item of each client."""
        for clients in (self._interactive, self._bulk):
            for items in clients.values():
                yield items[0]


def _next(clients: OrderedDict[str, deque[T]]) -> T:
    """The first client's first item. That client is last from now on."""
    client, items = clients.popitem(last=False)
    item = items.popleft()
    if items:
        clients[client] = items
    return item

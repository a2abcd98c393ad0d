"""The order in which images are taken: clients take turns, and interactive work passes bulk work.

Not thread-safe: whoever shares a queue holds its lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
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
        """The next item, of the client whose turn it is. That client is last from now on."""
        if self._bulk and (not self._interactive or self._passed == BULK_TURN - 1):
            self._passed, clients = 0, self._bulk
        else:
            self._passed += bool(self._bulk)
            clients = self._interactive
        client, items = clients.popitem(last=False)
        item = items.popleft()
        if items:
            clients[client] = items
        self._length -= 1
        return item

    def remove(self, item: T, *, client: str = "", bulk: bool = False) -> None:
        """Take *item* out, which was pushed as this *client*'s."""
        clients = self._bulk if bulk else self._interactive
        clients[client].remove(item)
        self._length -= 1
        if not clients[client]:
            del clients[client]

    def heads(self) -> list[T]:
        """The oldest item of each client."""
        return [
            items[0] for clients in (self._interactive, self._bulk) for items in clients.values()
        ]

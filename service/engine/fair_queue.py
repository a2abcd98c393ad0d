"""A queue that is fair between clients and lets interactive work pass bulk work without starving
it. Not thread-safe: for one event loop.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

BULK_TURN = 5
"""While both wait, every fifth item is a bulk one: bulk work is slowed to a fifth, and never stopped."""


class FairQueue(Generic[T]):
    """Clients take turns, an item each, in the order in which they came; each client's own items
    keep their order.

    So a client with one image waits for one image of each other client, however many those have.
    """

    def __init__(self) -> None:
        self._interactive: OrderedDict[str, deque[T]] = OrderedDict()
        self._bulk: OrderedDict[str, deque[T]] = OrderedDict()
        self._length = 0
        self._passed = 0
        """Interactive items taken since the last bulk one, while bulk waited."""

    def __len__(self) -> int:
        return self._length

    def push(self, item: T, *, client: str = "", bulk: bool = False, first: bool = False) -> None:
        """Put *item* behind all others of its *client*, or *first* of all where it was taken too
        early. Without a name, all clients are one.
        """
        lane = self._bulk if bulk else self._interactive
        items = lane.setdefault(client, deque())
        if first:
            items.appendleft(item)
            lane.move_to_end(client, last=False)
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
        lane = self._bulk if bulk else self._interactive
        if client not in lane:
            raise ValueError(f"client {client!r} has nothing in the queue")
        lane[client].remove(item)
        self._length -= 1
        if not lane[client]:
            del lane[client]

    def heads(self) -> Iterator[T]:
        """The oldest item of each client."""
        for lane in (self._interactive, self._bulk):
            for items in lane.values():
                yield items[0]


def _next(lane: OrderedDict[str, deque[T]]) -> T:
    """The first client's first item; that client goes to the end of the line."""
    client, items = lane.popitem(last=False)
    item = items.popleft()
    if items:
        lane[client] = items
    return item

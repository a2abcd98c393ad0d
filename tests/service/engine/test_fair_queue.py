"""The queue's order: fair between clients, quick for interactive work, never still for bulk."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from service.engine.fair_queue import BULK_TURN, FairQueue

ARRIVALS = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60)
"""Who sends an item, and whether it is a bulk one."""


def filled(arrivals: list[tuple[str, bool]]) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for number, (client, bulk) in enumerate(arrivals):
        queue.push(number, client=client, bulk=bulk)
    return queue


def drained(queue: FairQueue[int]) -> list[int]:
    return [queue.pop() for _ in range(len(queue))]


def test_a_client_with_one_image_waits_for_one_of_each_other_client():
    queue = filled([("many", False)] * 5 + [("one", False), ("two", False), ("two", False)])
    assert drained(queue) == [0, 5, 6, 1, 7, 2, 3, 4]


def test_interactive_work_passes_bulk_work_which_gets_every_fifth_turn():
    queue = filled([("a", True)] * 3 + [("b", False)] * 10)
    assert BULK_TURN == 5
    assert drained(queue) == [3, 4, 5, 6, 0, 7, 8, 9, 10, 1, 11, 12, 2]


def test_bulk_work_alone_has_every_turn():
    assert drained(filled([("a", True), ("a", True)])) == [0, 1]


@given(ARRIVALS)
def test_each_item_comes_out_once_and_each_client_keeps_its_order(arrivals):
    order = drained(filled(arrivals))
    assert sorted(order) == list(range(len(arrivals)))
    for key in set(arrivals):
        own = [number for number in order if arrivals[number] == key]
        assert own == sorted(own)


@given(ARRIVALS)
def test_nobody_gets_a_second_turn_before_all_that_wait_got_one(arrivals):
    """Within a kind of work: between two items of a client, every other client that has items left
    comes up once.
    """
    order = drained(filled(arrivals))
    for bulk in (False, True):
        turns = [arrivals[number][0] for number in order if arrivals[number][1] is bulk]
        left = {client: turns.count(client) for client in set(turns)}
        since: dict[str, set[str]] = defaultdict(set)
        for client in turns:
            if client in since:
                assert since[client] >= {
                    other for other, count in left.items() if count and other != client
                }
            since[client] = set()
            left[client] -= 1
            for others in since.values():
                others.add(client)


@given(ARRIVALS, st.data())
def test_what_is_taken_out_never_comes_and_nothing_else_is_lost(arrivals, data):
    queue = filled(arrivals)
    gone = data.draw(st.sets(st.sampled_from(range(len(arrivals))))) if arrivals else set()
    for number in gone:
        client, bulk = arrivals[number]
        queue.remove(number, client=client, bulk=bulk)
    assert len(queue) == len(arrivals) - len(gone)
    assert set(drained(queue)) == set(range(len(arrivals))) - gone


def test_the_heads_are_the_oldest_item_of_each_client():
    queue = filled([("a", False), ("a", False), ("b", True), ("a", True)])
    assert sorted(queue.heads()) == [0, 2, 3]


def test_what_was_taken_too_early_goes_before_all_others():
    queue = filled([("a", False), ("b", False), ("a", False)])
    taken = [queue.pop(), queue.pop()]
    for item, client in reversed(list(zip(taken, "ab", strict=True))):
        queue.push(item, client=client, first=True)
    assert drained(queue) == [0, 1, 2]

"""Decoding in threads: fair, each image within its budget, and a stuck one costs its thread and
nothing else.
"""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DeadlineExceeded, DecodeTimeout, UndecodableImage
from service.engine.decoding import DEFAULT_DECODE_S, Decoded, Decoders
from tests.service.held import PATIENCE_S, HeldDecode, drive, in_s, number_of, until

LONG_S = 60.0


def start(
    target: Decoders,
    decode: HeldDecode,
    encoded: bytes,
    *,
    deadline_s: float = LONG_S,
    **who: object,
) -> asyncio.Task[Decoded]:
    return asyncio.create_task(target.decode(decode, encoded, deadline=in_s(deadline_s), **who))


def test_each_caller_gets_its_own_pixels_or_error_and_how_long_they_took():
    async def test() -> None:
        decode, target = HeldDecode(), Decoders(threads=2, budget_s=LONG_S)
        found = await asyncio.gather(
            *(start(target, decode, one) for one in (b"1", b"bad", b"3")), return_exceptions=True
        )
        assert [number_of(found[index][0]) for index in (0, 2)] == [1, 3]
        assert all(0.0 <= found[index][1] < LONG_S for index in (0, 2))
        assert isinstance(found[1], UndecodableImage)
        assert target.depth == 0
        target.close()

    drive(test)


def test_clients_take_turns_and_bulk_lets_others_pass():
    async def test() -> None:
        decode, target = HeldDecode(held=True), Decoders(threads=1, budget_s=LONG_S)
        tasks = [start(target, decode, b"0")]
        await decode.wait_begun()
        tasks += [start(target, decode, b"%d" % number, client="many") for number in (1, 2, 3)]
        tasks += [
            start(target, decode, b"9", client="many", bulk=True),
            start(target, decode, b"4", client="one"),
        ]
        await until(lambda: target.depth == 6)
        decode.go.set()
        await asyncio.gather(*tasks)
        assert decode.order == [b"0", b"1", b"4", b"2", b"3", b"9"]
        target.close()

    drive(test)


def test_a_decode_past_its_budget_is_answered_for_and_its_thread_counts_as_busy():
    async def test() -> None:
        busy: list[int] = []
        decode, target = (
            HeldDecode(held=True),
            Decoders(threads=1, budget_s=0.03, on_busy=busy.append),
        )
        with pytest.raises(
            DecodeTimeout,
            match=(
                r"^the image was not decoded within 0\.03 s, the most that one may take; send a"
                r" smaller"
            ),
        ):
            await start(target, decode, b"1")
        assert (target.depth, busy[-1]) == (1, 1)
        # The thread is stuck: whoever comes now leaves at its own deadline, which is not its
        # image's fault.
        with pytest.raises(
            DeadlineExceeded,
            match=r"^the request's deadline passed before its image could be decoded$",
        ):
            await start(target, decode, b"2", deadline_s=0.05)
        await asyncio.wait_for(target.drained(), PATIENCE_S)
        decode.go.set()
        await until(lambda: target.depth == 0)
        assert busy[-1] == 0
        assert number_of((await start(target, decode, b"3"))[0]) == 3
        assert decode.order == [b"1", b"3"], "what had no caller any more was not begun"
        target.close()

    drive(test)


def test_the_budget_begins_with_the_decode_and_not_with_the_wait_for_a_thread():
    async def test() -> None:
        decode, quick, target = (
            HeldDecode(held=True),
            HeldDecode(),
            Decoders(threads=1, budget_s=0.05),
        )
        first = start(target, decode, b"1")
        second = start(target, quick, b"2")
        with pytest.raises(DecodeTimeout):
            await first
        # By now the second has waited for as long as its budget.
        await asyncio.sleep(0)
        assert not second.done()
        decode.go.set()
        assert number_of((await second)[0]) == 2
        target.close()

    drive(test)


def test_a_caller_that_leaves_makes_room_and_its_image_is_not_begun():
    async def test() -> None:
        decode, target = HeldDecode(held=True), Decoders(threads=1, budget_s=LONG_S)
        first = start(target, decode, b"1")
        await decode.wait_begun()
        leavers = [start(target, decode, b"2"), start(target, decode, b"3")]
        await until(lambda: target.depth == 3)
        for task in leavers:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert target.depth == 1
        decode.go.set()
        await first
        assert decode.order == [b"1"]
        target.close()

    drive(test)


def test_the_expected_wait_is_that_of_the_images_before_it_shared_by_the_threads():
    async def test() -> None:
        decode, target = HeldDecode(held=True), Decoders(threads=2, budget_s=LONG_S)
        assert target.expected_wait_s() == 0.0
        tasks = [start(target, decode, b"%d" % number) for number in range(4)]
        await until(lambda: target.depth == 4)
        assert target.expected_wait_s() == pytest.approx(2 * DEFAULT_DECODE_S)
        decode.go.set()
        await asyncio.gather(*tasks)
        target.close()

    drive(test)


def test_while_nobody_could_go_on_pixels_wait_to_be_collected_and_errors_do_not():
    async def test() -> None:
        decode, patient = HeldDecode(), True
        target = Decoders(threads=1, budget_s=LONG_S, is_patient=lambda: patient)
        first = start(target, decode, b"1")
        with pytest.raises(UndecodableImage):
            # Its error wakes the event loop, which then hands over what else is there.
            await start(target, decode, b"bad")
        assert number_of((await first)[0]) == 1
        second = start(target, decode, b"2")
        await decode.wait_begun()
        # With the third the second has surely ended: there is one thread.
        third = start(target, decode, b"3")
        for _ in range(3):
            await decode.wait_begun()
        assert not second.done()
        assert target.depth >= 1
        patient = False
        target.collect()
        assert [number_of((await one)[0]) for one in (second, third)] == [2, 3]
        target.close()

    drive(test)


def test_pixels_that_wait_to_be_collected_are_not_taken_for_a_decode_past_its_budget():
    async def test() -> None:
        decode, target = HeldDecode(), Decoders(threads=1, budget_s=0.02, is_patient=lambda: True)
        assert number_of((await start(target, decode, b"1"))[0]) == 1
        target.close()

    drive(test)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_whoever_leaves_all_others_get_their_own_pixels_and_nothing_is_left(fates):
    """0 leaves at once, 1 leaves when the first decode runs, others stay."""

    async def test() -> None:
        decode, target = HeldDecode(held=True), Decoders(threads=2, budget_s=LONG_S)
        tasks = [
            start(target, decode, b"%d" % number, client=str(number % 3))
            for number in range(len(fates))
        ]
        await asyncio.sleep(0)
        for moment in (0, 1):
            for fate, task in zip(fates, tasks, strict=True):
                if fate == moment:
                    task.cancel()
            await asyncio.sleep(0)
        decode.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        stayed = [number for number, fate in enumerate(fates) if fate > 1]
        assert [number_of(found[number][0]) for number in stayed] == stayed
        await until(lambda: target.depth == 0)
        assert number_of((await start(target, decode, b"99"))[0]) == 99
        target.close()

    drive(test)

"""Lanes: each takes the oldest images from bytes to answers; whatever fails, is stuck or leaves
costs nobody else anything.
"""

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DeadlineExceeded, DecodeTimeout, QueueFull, UndecodableImage
from service.engine.lanes import DEFAULT_ITEM_S, Lanes
from service.engine.tickets import Done, PoolLimits
from tests.service.held import HeldDecode, HeldModel, Recorder, drive, image, in_s, until

LONG_S = 60.0
NAMES = ("probabilities",)


@pytest.fixture(autouse=True)
def _heard(monkeypatch):
    # Handlers of `service.server.bento`, if it was imported before, keep records from caplog.
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)


@asynccontextmanager
async def lanes(
    decode,
    model,
    *,
    count: int = 1,
    size: int = 4,
    observer: Recorder | None = None,
    cpus: Sequence[int] = (),
    **limits: float,
):
    target = Lanes(
        decode,
        model.run,
        lanes=count,
        limits=PoolLimits(size, **limits),
        metrics=observer or Recorder(),
        cpus=cpus,
    )
    async with target:
        yield target
    assert target.depth == 0


def start(
    target: Lanes,
    payload: object,
    *,
    deadline_s: float = LONG_S,
    outputs=NAMES,
    client: str = "",
    bulk: bool = False,
) -> asyncio.Task[Done]:
    encoded = b"%d" % payload if isinstance(payload, int) else payload
    return asyncio.create_task(
        target.submit(encoded, deadline=in_s(deadline_s), outputs=outputs, client=client, bulk=bulk)
    )


def numbers(found: list[Done]) -> list[int]:
    return [int(done.outputs["probabilities"][0]) for done in found]


def test_each_image_gets_its_own_answer_and_pixels_are_taken_as_they_are():
    async def test() -> None:
        decode, model = HeldDecode(), HeldModel()
        async with lanes(decode, model, count=2) as target:
            found = await asyncio.gather(
                *[start(target, number) for number in range(20)], start(target, image(99))
            )
        assert numbers(found) == [*range(20), 99]
        assert len(decode.order) == 20
        for done in found:
            timing = done.timing
            assert min(timing.decode_s, timing.queue_s, timing.inference_s) >= 0.0
            assert 1 <= timing.batch_size <= 4
        assert found[-1].timing.decode_s == 0.0

    drive(test)


def test_few_images_are_run_one_by_one_and_many_are_shared_as_batches():
    async def test() -> None:
        decode, model, seen = HeldDecode(held=True), HeldModel(), Recorder()
        async with lanes(decode, model, count=2, size=16, observer=seen) as target:
            both = [start(target, 0), start(target, 1)]
            for _ in both:
                await decode.wait_begun()
            waiting = [start(target, number) for number in range(2, 14)]
            await until(lambda: target.depth == 14)
            decode.go.set()
            found = await asyncio.gather(*both, *waiting)
        assert sorted(map(sorted, model.batches))[:2] == [[0], [1]], "two lanes, an image each"
        # Twelve wait: whoever is free first takes half of them, in order.
        assert [2, 3, 4, 5, 6, 7] in model.batches
        assert [done.timing.batch_size for done in found[2:8]] == [6] * 6
        assert sorted(seen.sizes) == sorted(map(len, model.batches))
        assert seen.depths[-1] == 0
        assert (max(seen.busy), seen.busy[-1]) == (2, 0)

    drive(test)


def test_a_batch_is_never_larger_than_it_may_be():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        async with lanes(decode, model, size=3) as target:
            tasks = [start(target, number) for number in range(8)]
            await decode.wait_begun()
            await until(lambda: target.depth == 8)
            decode.go.set()
            await asyncio.gather(*tasks)
        assert max(map(len, model.batches)) == 3

    drive(test)


def test_an_image_that_cannot_be_decoded_or_computed_fails_alone():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel(guilty_from=100)
        async with lanes(decode, model, size=8) as target:
            first = start(target, 0)
            await decode.wait_begun()
            tasks = [start(target, payload) for payload in (1, b"bad", 100, 2)]
            await until(lambda: target.depth == 5)
            decode.go.set()
            one, bad, guilty, two = await asyncio.gather(*tasks, return_exceptions=True)
            await first
        assert numbers([one, two]) == [1, 2]
        assert isinstance(bad, UndecodableImage)
        assert str(guilty) == "cannot compute 100"
        assert model.batches == [[0], [1, 100, 2], [1], [100], [2]]

    drive(test)


def test_a_model_that_gives_too_few_rows_is_our_own_mistake():
    async def test() -> None:
        class Short(HeldModel):
            def run(self, pixels_NHWC, outputs):
                return {"probabilities": np.zeros((len(pixels_NHWC) + 1, 2), dtype=np.float32)}

        async with lanes(HeldDecode(), Short()) as target:
            with pytest.raises(
                AssertionError, match=r"^output probabilities has 2 rows for 1 images$"
            ):
                await start(target, 1)

    drive(test)


def test_each_image_gets_the_outputs_it_asked_for_from_one_run():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        async with lanes(decode, model) as target:
            first = start(target, 0)
            await decode.wait_begun()
            tasks = [start(target, 1), start(target, 2, outputs=("probabilities", "embedding"))]
            await until(lambda: target.depth == 3)
            decode.go.set()
            await first
            plain, both = await asyncio.gather(*tasks)
        assert (plain.outputs.keys(), both.outputs.keys()) == (
            {"probabilities"},
            {"probabilities", "embedding"},
        )
        assert model.asked[1:] == [("probabilities", "embedding")]

    drive(test)


def test_what_waits_behind_a_stuck_decode_goes_to_another_lane():
    async def test() -> None:
        class StuckAtOne(HeldDecode):
            def __call__(self, encoded):
                return (
                    super().__call__(encoded)
                    if encoded in (b"0", b"1", b"9")
                    else image(int(encoded))
                )

        decode, model, seen = StuckAtOne(held=True), HeldModel(), Recorder()
        async with lanes(
            decode, model, count=2, size=16, observer=seen, decode_timeout_s=0.05
        ) as target:
            # Both lanes are held until all wait; then one takes half of them, with number 9 in
            # their middle.
            held = [start(target, 0), start(target, 1)]
            for _ in held:
                await decode.wait_begun()
            decode.go.set()
            await asyncio.gather(*held)
            decode.go.clear()
            tasks = [start(target, number) for number in (7, 8, 9, 10, 11)]
            with pytest.raises(
                DecodeTimeout,
                match=(
                    r"^the image was not decoded within 0\.05 s, the most that one may take; send a"
                    r" smaller"
                ),
            ):
                await tasks[2]
            assert numbers(await asyncio.gather(*tasks[:2], *tasks[3:])) == [7, 8, 10, 11]
            assert seen.busy[-1] == 1, "the stuck one counts until it ends"
            decode.go.set()
            await until(lambda: target.depth == 0)
            assert numbers([await start(target, 12)]) == [12]
            await until(lambda: seen.busy[-1] == 0)
        assert 9 not in [number for batch in model.batches for number in batch]

    drive(test)


class TwoGates:
    """Decodes at once, but numbers 998 and 999 when the test opens the first gate, and 900 when it
    opens the second.
    """

    def __init__(self) -> None:
        self.first, self.second = HeldDecode(held=True), HeldDecode(held=True)

    def __call__(self, encoded: bytes) -> np.ndarray:
        number = int(encoded)
        if number < 900:
            return image(number)
        return (self.first if number > 900 else self.second)(encoded)


def test_a_caller_that_leaves_during_its_decode_leaves_nobody_behind():
    async def test() -> None:
        decode, seen = TwoGates(), Recorder()
        async with lanes(
            decode, HeldModel(), count=2, size=16, observer=seen, decode_timeout_s=0.1
        ) as target:
            held = [start(target, 998), start(target, 999)]
            for _ in held:
                await decode.first.wait_begun()
            waiting = [start(target, 1), start(target, 900), start(target, 2), start(target, 3)]
            await until(lambda: target.depth == 6)
            decode.first.go.set()
            await decode.second.wait_begun()
            # What its lane has decoded before waits behind a decode that nobody waits for any more;
            # the other lane may have it after the budget.
            waiting[1].cancel()
            assert sorted(numbers(await asyncio.gather(waiting[0], *waiting[2:]))) == [1, 2, 3]
            assert [lane.stuck for lane in target._decoders].count(True) <= 1
            decode.second.go.set()
            await asyncio.gather(*held)
            await until(lambda: not any(lane.busy for lane in target._decoders))
            assert seen.depths[-1] == 0

    drive(test)


def test_a_free_lane_takes_what_would_wait_behind_a_slow_decode():
    async def test() -> None:
        decode = TwoGates()
        async with lanes(decode, HeldModel(), count=2, size=16) as target:
            held = [start(target, 998), start(target, 999)]
            for _ in held:
                await decode.first.wait_begun()
            slow = start(target, 900)
            small = [start(target, number) for number in range(1, 12)]
            await until(lambda: target.depth == 14)
            decode.first.go.set()
            # The first lane that is free has six for its share, the slow one at their head.
            assert sorted(numbers(await asyncio.gather(*held, *small))) == [*range(1, 12), 998, 999]
            assert not slow.done()
            decode.second.go.set()
            await slow

    drive(test)


def test_what_a_stuck_lane_had_decoded_goes_first():
    async def test() -> None:
        decode, model = TwoGates(), HeldModel(held=True)
        async with lanes(decode, model, count=2, size=16, decode_timeout_s=0.1) as target:
            stuck = start(target, 900)
            await decode.second.wait_begun()
            busy = start(target, 1)
            await asyncio.to_thread(model.wait_begun)
            waiting = [start(target, number) for number in (2, 3, 4, 5)]
            await until(lambda: target.depth == 5)
            lane = next(lane for lane in target._decoders if lane.decoding is not None)
            with target._lock:
                # As if it had decoded the first of them before it got stuck.
                item = target._queue.pop()
                item.queue, item.payload = None, image(2)
                lane.ready.append(item)
            with pytest.raises(DecodeTimeout):
                await stuck
            model.let_go()
            await asyncio.gather(busy, *waiting)
            decode.second.go.set()
        assert [number for batch in model.batches for number in batch] == [1, 2, 3, 4, 5]

    drive(test)


def test_a_deadline_that_passes_during_a_decode_takes_nothing_from_its_lane():
    async def test() -> None:
        decode, seen = TwoGates(), Recorder()
        async with lanes(decode, HeldModel(), size=16, observer=seen) as target:
            hurried = start(target, 900, deadline_s=0.05)
            await decode.second.wait_begun()
            with pytest.raises(DeadlineExceeded):
                await hurried
            assert not target._decoders[0].stuck
            decode.second.go.set()
            assert numbers([await start(target, 1)]) == [1]
        assert seen.depths[-1] == 0

    drive(test)


def test_a_stuck_decode_says_nothing_of_how_long_the_next_will_take():
    async def test() -> None:
        decode = TwoGates()
        async with lanes(decode, HeldModel(), count=2, decode_timeout_s=0.05) as target:
            with pytest.raises(DecodeTimeout):
                await start(target, 900)
            assert target.depth == 0, "it is given up, and takes no place of the queue"
            assert target.expected_wait_s() == 0.0
            learned_s = target._item_s
            decode.second.go.set()
            await until(lambda: not any(lane.busy for lane in target._decoders))
            assert target._item_s == learned_s

    drive(test)


def test_a_failing_model_keeps_no_image():
    gone: list[int] = []

    class Photo(bytes):
        """Bytes whose end is seen."""

        def __del__(self) -> None:
            gone.append(1)

    async def fails(target: Lanes, number: int) -> None:
        with pytest.raises(ValueError, match="cannot compute"):
            await start(target, Photo(b"%d" % number))

    async def test() -> None:
        # `HeldDecode` would remember it.
        async with lanes(TwoGates(), HeldModel(guilty_from=100)) as target:
            gc.collect()
            gc.disable()
            try:
                for number in range(100, 105):
                    await fails(target, number)
                await start(target, 1)
                assert len(gone) == 5
            finally:
                gc.enable()

    drive(test)


def test_an_error_that_no_future_takes_reaches_its_caller_all_the_same():
    async def test() -> None:
        class Ends(HeldModel):
            def run(self, pixels_NHWC, outputs):
                raise StopIteration(7)

        async with lanes(HeldDecode(), Ends()) as target:
            with pytest.raises(RuntimeError, match=r"^it raised StopIteration\(7\)$"):
                await start(target, 1)

    drive(test)


def test_a_lane_whose_priority_may_not_be_changed_works_and_says_so(monkeypatch, caplog):
    def refused(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr("os.setpriority", refused)

    async def test() -> None:
        async with lanes(HeldDecode(), HeldModel()) as target:
            assert numbers([await start(target, 1)]) == [1]

    drive(test)
    assert "threads that compute keep the event loop's priority" in caplog.text


def test_with_every_lane_stuck_each_leaves_at_its_deadline_and_the_limit_begins_with_the_decode():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        async with lanes(decode, model, decode_timeout_s=0.05) as target:
            with pytest.raises(DecodeTimeout):
                await start(target, 1)
            patient = start(target, 3)
            # It waits for longer than a decode may take, and is nobody's fault.
            with pytest.raises(
                DeadlineExceeded, match=r"^no answer within the deadline; the image waited 0\.1 s$"
            ):
                await start(target, 2, deadline_s=0.12)
            assert not patient.done()
            decode.go.set()
            assert numbers([await patient]) == [3]
        assert decode.order == [b"1", b"3"], "what had no caller any more was not begun"

    drive(test)


def test_a_caller_whose_deadline_passes_during_the_run_is_told_so():
    async def test() -> None:
        model = HeldModel(held=True)
        async with lanes(HeldDecode(), model) as target:
            task = start(target, 1, deadline_s=0.05)
            await asyncio.to_thread(model.wait_begun)
            with pytest.raises(DeadlineExceeded):
                await task
            model.let_go()

    drive(test)


def test_a_caller_that_leaves_makes_room_and_its_image_is_not_begun():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        async with lanes(decode, model) as target:
            first = start(target, 1)
            await decode.wait_begun()
            leavers = [start(target, 2), start(target, 3)]
            await until(lambda: target.depth == 3)
            for task in leavers:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert target.depth == 1
            decode.go.set()
            await first
        assert decode.order == [b"1"]

    drive(test)


def test_clients_take_turns_and_bulk_lets_others_pass():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        async with lanes(decode, model, size=16) as target:
            first = start(target, 0)
            await decode.wait_begun()
            tasks = [start(target, 90, client="c", bulk=True)]
            tasks += [start(target, number, client="a") for number in (1, 2, 3)]
            tasks += [start(target, 10, client="b")]
            await until(lambda: target.depth == 6)
            decode.go.set()
            await asyncio.gather(first, *tasks)
        assert decode.order == [b"0", b"1", b"10", b"2", b"3", b"90"]

    drive(test)


def test_the_expected_wait_is_that_of_the_images_before_it_shared_by_the_decoders():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        async with lanes(decode, model, count=2) as target:
            assert target.expected_wait_s() == 0.0
            tasks = [start(target, number) for number in range(4)]
            await until(lambda: target.depth == 4)
            assert target.expected_wait_s() == pytest.approx(1.5 * DEFAULT_ITEM_S), (
                "a lane is free after one of its two"
            )
            assert target.expected_answer_s() >= target.expected_wait_s()
            decode.go.set()
            await asyncio.gather(*tasks)

    drive(test)


def test_what_waits_is_bounded_in_bytes_and_one_image_of_any_size_is_taken():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        async with lanes(decode, model, max_queue_bytes=2) as target:
            large = start(target, b"123456")
            await decode.wait_begun()
            with pytest.raises(
                QueueFull, match=r"^waiting images hold 6 of 2 bytes; try again in 0\.\d s$"
            ) as refused:
                await start(target, 1)
            assert refused.value.retry_after_s > 0.0
            decode.go.set()
            await large
            assert numbers([await start(target, 1)]) == [1]

    drive(test)


def test_leaving_answers_what_was_accepted():
    async def test() -> None:
        decode, model = HeldDecode(held=True), HeldModel()
        target = await Lanes(
            decode, model.run, lanes=2, limits=PoolLimits(4), metrics=Recorder()
        ).__aenter__()
        tasks = [start(target, number) for number in range(9)]
        await decode.wait_begun()
        leaving = asyncio.create_task(target.__aexit__())
        await asyncio.sleep(0)
        assert not leaving.done()
        decode.go.set()
        assert numbers(await asyncio.gather(*tasks)) == list(range(9))
        await leaving

    drive(test)


def test_a_fault_of_ours_costs_its_images_and_not_the_lane(caplog):
    caplog.set_level(logging.ERROR, logger="loupe")

    class Faulty(Recorder):
        def batch_done(self, size: int, seconds: float) -> None:
            super().batch_done(size, seconds)
            if len(self.sizes) == 1:
                raise KeyError("a metric")

    async def test() -> None:
        async with lanes(HeldDecode(), HeldModel(), observer=Faulty()) as target:
            with pytest.raises(
                RuntimeError, match=r"^a worker thread failed: KeyError\('a metric'\)$"
            ):
                await start(target, 1)
            assert numbers([await start(target, 2)]) == [2]

    drive(test)
    assert [record.message for record in caplog.records] == [
        "a worker thread failed; its images get an error, and it continues"
    ]


CALLERS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 2**24 - 1), st.just(b"bad")),
        st.sampled_from("abc"),
        st.booleans(),
        st.sampled_from(["stays", "stays", "leaves", "leaves later", "late", "hurried"]),
    ),
    max_size=30,
    unique_by=lambda caller: caller[0] if isinstance(caller[0], int) else object(),
)
"""A caller: its image's number or a bad image, its client, whether it is bulk, and its fate."""


@settings(deadline=None, max_examples=80)
@given(
    callers=CALLERS,
    size=st.integers(1, 9),
    count=st.integers(1, 3),
    guilty_from=st.integers(1, 2**24),
)
def test_whatever_happens_each_caller_gets_its_own_answer_or_its_own_error(
    callers, size, count, guilty_from
):
    async def test() -> None:
        decode, model, deadlines = (
            HeldDecode(held=True),
            HeldModel(guilty_from=guilty_from),
            {"late": -1.0, "hurried": 0.01},
        )
        async with lanes(decode, model, count=count, size=size) as target:
            tasks = [
                start(
                    target,
                    payload,
                    deadline_s=deadlines.get(fate, LONG_S),
                    client=client,
                    bulk=bulk,
                )
                for payload, client, bulk, fate in callers
            ]
            await asyncio.sleep(0)
            for moment in ("leaves", "leaves later"):
                for task, (*_, fate) in zip(tasks, callers, strict=True):
                    if fate == moment:
                        task.cancel()
                await asyncio.sleep(0.001)
            # The hurried ones run out of time here, in the queue or in the decoder, which is held.
            await asyncio.gather(
                *[t for t, (*_, fate) in zip(tasks, callers, strict=True) if fate == "hurried"],
                return_exceptions=True,
            )
            decode.go.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
        for (payload, _, _, fate), answer in zip(callers, found, strict=True):
            if fate in ("late", "hurried"):
                assert isinstance(answer, DeadlineExceeded)
            elif fate.startswith("leaves"):
                assert isinstance(answer, asyncio.CancelledError)
            elif payload == b"bad":
                assert isinstance(answer, UndecodableImage)
            elif payload >= guilty_from:
                assert str(answer) == f"cannot compute {payload}"
            else:
                assert answer.outputs["probabilities"].tolist() == [payload, -payload]
        run = [number for batch in model.batches for number in batch]
        assert not {
            payload for payload, _, _, fate in callers if fate in ("late", "hurried", "leaves")
        } & set(run)
        assert max(map(len, model.batches), default=0) <= size
        assert model.most_running <= count

    drive(test)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="threads cannot be kept on a CPU on this system"
)
def test_lanes_keep_to_their_cpus_and_the_event_loop_to_none(caplog):
    allowed = os.sched_getaffinity(0)
    chosen = [min(allowed), max(allowed)]
    found = {}

    def decode(encoded):
        found[threading.current_thread().name] = os.sched_getaffinity(0)
        time.sleep(0.02)  # so that the other lane takes one too
        return image(1)

    async def test():
        async with lanes(decode, HeldModel(), count=2, cpus=chosen) as target:
            await asyncio.gather(*(start(target, number) for number in range(4)))

    drive(test)
    assert found == {"lane-0": {chosen[0]}, "lane-1": {chosen[1]}}
    assert os.sched_getaffinity(0) == allowed
    assert not caplog.records


def test_a_cpu_that_is_not_there_is_said_and_the_lane_works(caplog):
    async def test():
        async with lanes(HeldDecode(), HeldModel(), cpus=[4095]) as target:
            await start(target, 1)

    drive(test)
    (record,) = caplog.records
    assert "cannot be kept on CPU 4095" in record.message

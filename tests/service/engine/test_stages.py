"""Stages: threads that decode, and batches of what they decoded.

Answers reach their own callers, and nothing waits forever.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DeadlineExceeded, DecodeTimeout, QueueFull, UndecodableImage
from service.engine.stages import DEFAULT_DECODE_S, DEFAULT_RUN_S, Stages
from service.engine.tickets import Done, PoolLimits
from tests.service.held import HeldDecode, HeldModel, Recorder, drive, image, in_s, until

LONG_S = 60.0
"""A deadline that no test reaches."""


def stages(
    model: HeldModel,
    decode: HeldDecode | None = None,
    *,
    size: int = 4,
    threads: int = 1,
    delay_s: float = 0.0,
    in_flight: int = 1,
    seen: Recorder | None = None,
    **limits: float,
) -> Stages:
    return Stages(
        decode or HeldDecode(),
        model.run,
        limits=PoolLimits(size, **limits),
        metrics=seen or Recorder(),
        decode_threads=threads,
        max_queue_delay_s=delay_s,
        max_in_flight=in_flight,
    )


def submit(
    target: Stages, *numbers: int, deadline_s: float = LONG_S, **who_and_what: object
) -> list[asyncio.Task[Done]]:
    deadline = in_s(deadline_s)
    return [
        asyncio.create_task(target.submit(image(number), deadline=deadline, **who_and_what))
        for number in numbers
    ]


def start(
    target: Stages, *files: bytes, deadline_s: float = LONG_S, **who: object
) -> list[asyncio.Task[Done]]:
    """As `submit`, with files that are decoded first."""
    deadline = in_s(deadline_s)
    return [asyncio.create_task(target.submit(one, deadline=deadline, **who)) for one in files]


@asynccontextmanager
async def occupied(target: Stages, model: HeldModel) -> AsyncIterator[asyncio.Task[Done]]:
    """The model of *target* is busy with image 0 until the block ends; what is submitted in it
    queues.
    """
    (first,) = submit(target, 0)
    await asyncio.to_thread(model.wait_begun)
    try:
        yield first
    finally:
        model.let_go()


async def queued(target: Stages, depth: int) -> None:
    """Return once *depth* images wait: tasks that were created have run up to their wait."""
    while target.depth != depth:  # noqa: ASYNC110 - they need turns of the loop, and no time
        await asyncio.sleep(0)


def rows(answers: list[Done]) -> list[list[float]]:
    return [answer.outputs["probabilities"].tolist() for answer in answers]


def test_what_gathers_while_the_model_runs_becomes_one_batch():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with stages(model, size=4, seen=seen) as target:
            async with occupied(target, model) as first:
                tasks = submit(target, 1, 2, 3, 4, 5, 6)
                await queued(target, 6)
            answers = await asyncio.gather(first, *tasks)
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert seen.sizes == [1, 4, 2]
        assert [answer.timing.batch_size for answer in answers] == [1, 4, 4, 4, 4, 2, 2]
        assert rows(answers) == [[n, -n] for n in range(7)]
        assert seen.depths[-1] == 0
        assert max(seen.depths) == 6

    drive(test)


def test_an_answer_says_how_long_it_waited_and_ran():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with stages(model, seen=seen) as target:
            async with occupied(target, model) as first:
                (second,) = submit(target, 1)
                await queued(target, 1)
            one, two = await first, await second
        assert [one.timing.inference_s, two.timing.inference_s] == seen.seconds
        assert 0.0 <= one.timing.queue_s < LONG_S
        # It joined the queue while the first ran, and left it when that ended.
        assert 0.0 < two.timing.queue_s < LONG_S

    drive(test)


@settings(deadline=None, max_examples=60)
@given(
    callers=st.lists(
        st.tuples(st.integers(0, 2**24 - 1), st.booleans()),
        min_size=1,
        max_size=40,
        unique_by=lambda caller: caller[0],
    ),
    size=st.integers(1, 9),
    delay_s=st.sampled_from([0.0, 0.001]),
    guilty_from=st.integers(0, 2**24),
)
def test_each_caller_gets_its_own_answer_or_its_own_error(callers, size, delay_s, guilty_from):
    """Whatever the batch size, the failures and the cancellations.

    A caller is its image's number, and whether it leaves early.
    """

    async def test() -> None:
        model, seen = HeldModel(held=True, guilty_from=guilty_from), Recorder()
        numbers = [number for number, _ in callers]
        leavers = [index for index, (_, leaves) in enumerate(callers) if leaves]
        async with stages(model, size=size, delay_s=delay_s, seen=seen) as target:
            tasks = submit(target, *numbers)
            await asyncio.to_thread(model.wait_begun)
            taken = set(model.batches[0])
            for index in leavers:
                tasks[index].cancel()
            model.let_go()
            found = await asyncio.gather(*tasks, return_exceptions=True)
        for index, number in enumerate(numbers):
            answer = found[index]
            if index in leavers:
                assert isinstance(answer, asyncio.CancelledError)
            elif number >= guilty_from:
                assert isinstance(answer, ValueError)
                assert str(answer) == f"cannot compute {number}"
            else:
                assert isinstance(answer, Done)
                assert answer.outputs["probabilities"].tolist() == [number, -number]
                assert 1 <= answer.timing.batch_size <= size
        assert max(map(len, model.batches)) <= size
        # Those that left before their turn cost nothing.
        cancelled_in_queue = {numbers[index] for index in leavers} - taken
        assert not cancelled_in_queue & {number for batch in model.batches for number in batch}
        # In order of arrival, and no image is in two batches that succeeded.
        run = list(dict.fromkeys(number for batch in model.batches for number in batch))
        assert run == [number for number in numbers if number in set(run)]
        answered = sum(isinstance(answer, Done) for answer in found)
        assert answered <= sum(seen.sizes) <= sum(number < guilty_from for number in run)
        assert target.depth == 0

    drive(test)


def test_a_failing_batch_is_run_again_item_by_item_so_that_only_the_guilty_fails():
    async def test() -> None:
        model = HeldModel(held=True, guilty_from=100)
        async with stages(model, size=4) as target:
            async with occupied(target, model):
                tasks = submit(target, 1, 100, 2)
                await queued(target, 3)
            found = await asyncio.gather(*tasks, return_exceptions=True)
        assert model.batches == [[0], [1, 100, 2], [1], [100], [2]]
        assert rows([found[0], found[2]]) == [[1, -1], [2, -2]]
        assert [found[0].timing.batch_size, found[2].timing.batch_size] == [1, 1]
        assert isinstance(found[1], ValueError)
        assert str(found[1]) == "cannot compute 100"

    drive(test)


def test_a_cancelled_caller_makes_room_at_once():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with stages(model, seen=seen) as target:
            async with occupied(target, model):
                leaver, stayer = submit(target, 1, 2)
                await queued(target, 2)
                leaver.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaver
                assert target.depth == 1
                assert seen.depths[-1] == 1
                (newcomer,) = submit(target, 3)
                await queued(target, 2)
            assert rows([await stayer, await newcomer]) == [[2, -2], [3, -3]]
        assert model.batches == [[0], [2, 3]]

    drive(test)


def test_an_image_leaves_the_queue_at_its_deadline_though_the_model_is_stuck():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with stages(model, seen=seen) as target:
            async with occupied(target, model) as first:
                with pytest.raises(
                    DeadlineExceeded,
                    match=r"^no answer within the deadline; the image waited \d+\.\d s$",
                ) as expired:
                    await target.submit(image(1), deadline=in_s(0.01))
                assert expired.value.retry_after_s == 1.0
                assert target.depth == 0
                assert seen.depths[-1] == 0
                # Its place is free again.
                (newcomer,) = submit(target, 2)
                await queued(target, 1)
            assert rows([await first, await newcomer]) == [[0, 0], [2, -2]]
        assert model.batches == [[0], [2]]

    drive(test)


def test_a_caller_whose_deadline_passes_during_the_run_is_told_so():
    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model) as target:
            with pytest.raises(DeadlineExceeded, match="no answer within the deadline"):
                await target.submit(image(1), deadline=in_s(0.01))
            model.let_go()
            assert rows([await target.submit(image(2), deadline=in_s(LONG_S))]) == [[2, -2]]

    drive(test)


def test_closing_answers_what_was_accepted():
    async def test() -> None:
        model = HeldModel(held=True)
        target = await stages(model, size=2, delay_s=LONG_S / 2).__aenter__()
        submitted = submit(target, 1, 2)
        await asyncio.to_thread(model.wait_begun)
        submitted += submit(target, 3, 4, 5)
        await queued(target, 3)
        closing = asyncio.create_task(target.__aexit__(None, None, None))
        await asyncio.sleep(0)
        model.let_go()
        await closing
        assert all(task.done() for task in submitted)
        assert rows([task.result() for task in submitted]) == [[n, -n] for n in range(1, 6)]
        # The last one waits for no company: nobody may come any more.
        assert model.batches == [[1, 2], [3, 4], [5]]

    drive(test)


def test_closing_wakes_a_batch_that_waits_to_fill():
    async def test() -> None:
        model = HeldModel()
        async with stages(model, size=4, delay_s=LONG_S) as target:
            (task,) = submit(target, 1)
            await queued(target, 1)
            # It has been seen, and company is waited for.
            for _ in range(3):
                await asyncio.sleep(0)
            assert target.depth == 1
        assert rows([await task]) == [[1, -1]]

    drive(test)


def test_an_unused_batcher_closes():
    async def test() -> None:
        async with stages(HeldModel()) as target:
            assert target.depth == 0

    drive(test)


def test_a_full_batch_does_not_wait_for_the_queue_delay():
    async def test() -> None:
        model = HeldModel()
        async with stages(model, size=3, delay_s=LONG_S) as target:
            tasks = submit(target, 1, 2)
            await queued(target, 2)
            tasks += submit(target, 3)
            assert rows(await asyncio.gather(*tasks)) == [[1, -1], [2, -2], [3, -3]]
        assert model.batches == [[1, 2, 3]]

    drive(test)


def test_a_part_of_a_batch_goes_after_the_queue_delay():
    async def test() -> None:
        model = HeldModel()
        async with stages(model, size=3, delay_s=0.02) as target:
            tasks = submit(target, 1, 2)
            answers = await asyncio.gather(*tasks)
        assert model.batches == [[1, 2]]
        # Timers of the event loop may fire a clock tick early.
        assert answers[0].timing.queue_s >= 0.02 - 0.002

    drive(test)


def test_the_queue_delay_counts_from_arrival():
    """An image that waited for the model longer than the delay waits no longer."""

    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model, size=3, delay_s=0.02) as target:
            async with occupied(target, model) as first:
                (task,) = submit(target, 1)
                await queued(target, 1)
                with pytest.raises(DeadlineExceeded):
                    await target.submit(image(2), deadline=in_s(0.03))
            await first
            # It went the moment the model was free, so this one is too late to join it.
            await asyncio.to_thread(model.wait_begun)
            (latecomer,) = submit(target, 3)
            answer = await task
            await latecomer
        assert model.batches == [[0], [1], [3]]
        assert 0.02 <= answer.timing.queue_s < LONG_S

    drive(test)


def test_each_image_gets_the_outputs_it_asked_for_from_one_run():
    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model) as target:
            async with occupied(target, model):
                tasks = (
                    submit(target, 1, outputs=("logits",))
                    + submit(target, 2, outputs=("embedding", "logits"))
                    + submit(target, 3)
                )
                await queued(target, 3)
            found = [answer.outputs for answer in await asyncio.gather(*tasks)]
        assert model.asked == [("probabilities",), ("logits", "embedding", "probabilities")]
        # The model multiplies each output by its place in the alphabet.
        assert [{name: value.tolist() for name, value in outputs.items()} for outputs in found] == [
            {"logits": [2, -2]},
            {"embedding": [2, -2], "logits": [4, -4]},
            {"probabilities": [9, -9]},
        ]

    drive(test)


def test_many_callers_share_few_runs():
    """200 callers at once need at most 25 full batches and the first one, which goes alone."""

    async def test() -> None:
        model, seen = HeldModel(), Recorder()
        async with stages(model, size=8, seen=seen) as target:
            answers = await asyncio.gather(*submit(target, *range(200)))
        assert rows(answers) == [[n, -n] for n in range(200)]
        assert sum(seen.sizes) == 200
        assert len(seen.sizes) <= 26

    drive(test)


def test_clients_take_turns_so_that_many_images_of_one_do_not_hold_up_anothers_one():
    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model, size=2) as target:
            async with occupied(target, model):
                tasks = submit(target, 1, 2, 3, 4, client="many")
                await queued(target, 4)
                tasks += submit(target, 5, client="one")
                await queued(target, 5)
            answers = await asyncio.gather(*tasks)
        assert model.batches == [[0], [1, 5], [2, 3], [4]]
        assert rows(answers) == [[n, -n] for n in range(1, 6)]

    drive(test)


def test_interactive_images_pass_bulk_ones_which_keep_every_fifth_turn():
    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model, size=4) as target:
            async with occupied(target, model):
                tasks = submit(target, 10, 11, bulk=True)
                await queued(target, 2)
                tasks += submit(target, 1, 2, 3, 4, 5)
                await queued(target, 7)
            await asyncio.gather(*tasks)
        assert model.batches == [[0], [1, 2, 3, 4], [10, 5, 11]]

    drive(test)


def test_what_is_held_is_bounded_in_bytes_and_one_image_of_any_size_is_taken():
    async def test() -> None:
        model = HeldModel(held=True)
        size = image(0).nbytes
        async with stages(model, max_queue_bytes=3 * size) as target:
            async with occupied(target, model):
                leaver, stayer = submit(target, 1, 2)
                await queued(target, 2)
                with pytest.raises(
                    QueueFull,
                    match=(
                        rf"^waiting images hold {3 * size} of {3 * size} bytes; try again"
                        r" in 0\.0 s$"
                    ),
                ):
                    await target.submit(image(3), deadline=in_s(LONG_S))
                leaver.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaver
                (newcomer,) = submit(target, 4)
                await queued(target, 2)
            assert rows([await stayer, await newcomer]) == [[2, -2], [4, -4]]
            large_HWC = np.full((9, 9, 3), image(5)[0, 0])
            assert rows([await target.submit(large_HWC, deadline=in_s(LONG_S))]) == [[5, -5]]

    drive(test)


def test_the_pixels_of_a_file_count_until_its_caller_has_left():
    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model, max_queue_bytes=image(0).nbytes + 1) as target:
            async with occupied(target, model) as first:
                pass
            await first
            model = HeldModel(held=True)
            target._run = model.run
            (task,) = start(target, b"7")
            await asyncio.to_thread(model.wait_begun)
            with pytest.raises(QueueFull, match=r"^waiting images hold 13 of 13 bytes"):
                await target.submit(b"8", deadline=in_s(LONG_S))
            model.let_go()
            assert rows([await task, *await asyncio.gather(*start(target, b"8"))]) == [
                [7, -7],
                [8, -8],
            ]

    drive(test)


def test_several_batches_run_at_a_time_where_that_is_allowed():
    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model, size=2, in_flight=2) as target:
            tasks = submit(target, 1, 2, 3, 4, 5, 6)
            await asyncio.to_thread(model.wait_begun)
            await asyncio.to_thread(model.wait_begun)
            await queued(target, 2)
            assert model.running == 2
            model.let_go()
            assert rows(await asyncio.gather(*tasks)) == [[n, -n] for n in range(1, 7)]
        assert model.most_running == 2
        assert sorted(model.batches) == [[1, 2], [3, 4], [5, 6]]

    drive(test)


def test_closing_waits_for_every_batch_in_flight():
    async def test() -> None:
        model = HeldModel(held=True)
        target = await stages(model, size=1, in_flight=3).__aenter__()
        tasks = submit(target, 1, 2, 3)
        for _ in tasks:
            await asyncio.to_thread(model.wait_begun)
        closing = asyncio.create_task(target.__aexit__(None, None, None))
        await asyncio.sleep(0)
        assert not closing.done()
        model.let_go()
        await closing
        assert all(task.done() for task in tasks)
        assert rows([task.result() for task in tasks]) == [[1, -1], [2, -2], [3, -3]]

    drive(test)


CALLERS = st.lists(
    st.tuples(
        st.integers(1, 2**24 - 1),
        st.sampled_from(["", "a", "b"]),
        st.booleans(),
        st.sampled_from(["stays", "leaves", "late", "hurried"]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda caller: caller[0],
)
"""A caller: its image's number, its client's name, whether it is bulk, and what becomes of it."""


@settings(deadline=None, max_examples=60)
@given(
    callers=CALLERS,
    size=st.integers(1, 9),
    in_flight=st.integers(1, 3),
    guilty_from=st.integers(1, 2**24),
)
def test_whatever_happens_each_caller_gets_its_own_answer_or_its_own_error(
    callers, size, in_flight, guilty_from
):
    """Clients, priorities, deadlines before, during and after the run, cancellations,
    failures, several runs at a time.
    """

    async def test() -> None:
        model, deadlines = (
            HeldModel(held=True, guilty_from=guilty_from),
            {"late": -1.0, "hurried": 0.02},
        )
        async with stages(model, size=size, in_flight=in_flight) as target:
            tasks = []
            for number, client, bulk, fate in callers:
                tasks += submit(
                    target, number, deadline_s=deadlines.get(fate, LONG_S), client=client, bulk=bulk
                )
            await asyncio.sleep(0)
            for task, (*_, fate) in zip(tasks, callers, strict=True):
                if fate == "leaves":
                    task.cancel()
            # The hurried ones run out of time here, in the queue or in the model, which is held.
            await asyncio.gather(
                *[t for t, (*_, fate) in zip(tasks, callers, strict=True) if fate == "hurried"],
                return_exceptions=True,
            )
            model.let_go()
            found = await asyncio.gather(*tasks, return_exceptions=True)
        for (number, _, _, fate), answer in zip(callers, found, strict=True):
            if fate in ("late", "hurried"):
                assert isinstance(answer, DeadlineExceeded)
            elif fate == "leaves":
                assert isinstance(answer, asyncio.CancelledError)
            elif number >= guilty_from:
                assert str(answer) == f"cannot compute {number}"
            else:
                assert answer.outputs["probabilities"].tolist() == [number, -number]
        run = [number for batch in model.batches for number in batch]
        assert not {number for number, _, _, fate in callers if fate == "late"} & set(run)
        assert max(map(len, model.batches), default=0) <= size
        assert model.most_running <= in_flight
        assert target.depth == 0

    drive(test)


def test_the_expected_wait_is_that_of_the_images_before_it():
    async def test() -> None:
        model, decode = HeldModel(held=True), HeldDecode(held=True)
        async with stages(model, decode, threads=2, in_flight=2, size=1) as target:
            assert target.expected_wait_s() == 0.0
            running = submit(target, 1, 2)
            for _ in running:
                await asyncio.to_thread(model.wait_begun)
            pixels = submit(target, 3, 4)
            await queued(target, 2)
            assert target.expected_wait_s() == pytest.approx(DEFAULT_RUN_S)
            files = start(target, b"5", b"6", b"7", b"8")
            await queued(target, 6)
            assert target.expected_wait_s() == pytest.approx(
                2 * DEFAULT_DECODE_S + 3 * DEFAULT_RUN_S
            )
            assert target.expected_answer_s() >= target.expected_wait_s()
            decode.go.set()
            model.let_go()
            await asyncio.gather(*running, *pixels, *files)

    drive(test)


def test_an_image_whose_deadline_passed_while_the_event_loop_was_busy_never_reaches_the_model():
    """Its timer had no chance to fire before its turn came."""

    async def test() -> None:
        model = HeldModel(held=True)
        async with stages(model) as target:
            async with occupied(target, model) as first:
                deadline = in_s(0.005)
                task = asyncio.create_task(target.submit(image(1), deadline=deadline))
                await asyncio.sleep(0)
                while time.monotonic() <= deadline:
                    pass
            with pytest.raises(DeadlineExceeded, match="no answer within the deadline"):
                await task
            await first
        assert model.batches == [[0]]

    drive(test)


def test_what_is_decoded_while_the_model_runs_takes_part_in_the_next_batch():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with stages(model, threads=2, size=8, seen=seen) as target:
            async with occupied(target, model):
                tasks = start(target, *(b"%d" % number for number in range(1, 6)))
                await until(lambda: len(target._pixels) == 5)
            answers = await asyncio.gather(*tasks)
        assert [sorted(batch) for batch in model.batches] == [[0], [1, 2, 3, 4, 5]]
        assert rows(answers) == [[n, -n] for n in range(1, 6)]
        assert min(answer.timing.decode_s for answer in answers) > 0.0
        assert (seen.depths[-1], seen.busy[-1]) == (0, 0)

    drive(test)


def test_files_are_decoded_in_turns_of_their_clients_and_bulk_lets_others_pass():
    async def test() -> None:
        decode = HeldDecode(held=True)
        async with stages(HeldModel(), decode) as target:
            tasks = start(target, b"0")
            await decode.wait_begun()
            tasks += start(target, b"1", b"2", b"3", client="many")
            tasks += start(target, b"9", client="many", bulk=True)
            tasks += start(target, b"4", client="one")
            await queued(target, 6)
            decode.go.set()
            await asyncio.gather(*tasks)
        assert decode.order == [b"0", b"1", b"4", b"2", b"3", b"9"]

    drive(test)


def test_a_decode_past_its_limit_is_answered_for_and_its_thread_counts_as_busy():
    async def test() -> None:
        decode, seen = HeldDecode(held=True), Recorder()
        async with stages(HeldModel(), decode, seen=seen, decode_timeout_s=0.03) as target:
            stuck, patient = start(target, b"1", b"3")
            with pytest.raises(
                DecodeTimeout, match=r"^the image was not decoded within 0\.03 s, the most that one"
            ):
                await stuck
            assert (target.depth, seen.busy[-1]) == (1, 1), "it takes no place of the queue"
            # Who waits for the thread leaves at its own deadline, which is not its image's fault.
            with pytest.raises(DeadlineExceeded, match=r"^no answer within the deadline"):
                await asyncio.gather(*start(target, b"2", deadline_s=0.05))
            assert not patient.done(), "the limit begins with the decode"
            decode.go.set()
            assert rows([await patient]) == [[3, -3]]
        assert decode.order == [b"1", b"3"], "what had no caller any more was not begun"
        assert seen.busy[-1] == 0

    drive(test)


def test_a_caller_that_leaves_before_its_decode_makes_room_and_its_image_is_not_begun():
    async def test() -> None:
        decode = HeldDecode(held=True)
        async with stages(HeldModel(), decode) as target:
            (first,) = start(target, b"1")
            await decode.wait_begun()
            leavers = start(target, b"2", b"3")
            await queued(target, 3)
            for task in leavers:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert target.depth == 1
            decode.go.set()
            await first
        assert decode.order == [b"1"]

    drive(test)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_whoever_leaves_all_others_get_their_own_answer_and_nothing_is_held(callers):
    """Files and bad files: 0 leaves at once, 1 leaves during the first decode, others stay."""

    async def test() -> None:
        decode = HeldDecode(held=True)
        async with stages(HeldModel(), decode, threads=2) as target:
            tasks = [
                start(target, b"bad" if bad else b"%d" % number, client=str(number % 3))[0]
                for number, (bad, _) in enumerate(callers)
            ]
            await asyncio.sleep(0)
            for moment in (0, 1):
                for (_, fate), task in zip(callers, tasks, strict=True):
                    if fate == moment:
                        task.cancel()
                await asyncio.sleep(0)
            decode.go.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for number, (bad, fate) in enumerate(callers):
                if fate > 1 and bad:
                    assert isinstance(found[number], UndecodableImage)
                elif fate > 1:
                    assert rows([found[number]]) == [[number, -number]]
            await until(lambda: target.depth == 0)
            assert target._held_bytes == 0

    drive(test)

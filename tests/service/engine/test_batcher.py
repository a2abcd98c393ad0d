"""The batcher without HTTP: batches form, answers reach their own callers, and nothing waits for
ever.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DeadlineExceeded, NotReady, QueueFull
from service.engine.batcher import Answer, Batcher
from tests.service.held import PATIENCE_S, HeldModel, Recorder, drive, image, in_s

LONG_S = 60.0
"""A deadline that no test reaches."""


def batcher(
    model: HeldModel,
    *,
    size: int = 4,
    delay_s: float = 0.0,
    queue: int = 64,
    observer: Recorder | None = None,
    **bounds: int,
) -> Batcher:
    return Batcher(
        model.run,
        max_batch_size=size,
        max_queue_delay_s=delay_s,
        max_queue_size=queue,
        observer=observer,
        **bounds,
    )


def submit(
    target: Batcher, *numbers: int, deadline_s: float = LONG_S, **who_and_what: object
) -> list[asyncio.Task[Answer]]:
    deadline = in_s(deadline_s)
    return [
        asyncio.create_task(target.submit(image(number), deadline=deadline, **who_and_what))
        for number in numbers
    ]


@asynccontextmanager
async def occupied(target: Batcher, model: HeldModel) -> AsyncIterator[asyncio.Task[Answer]]:
    """The model of *target* is busy with image 0 until the block ends; what is submitted in it
    queues.
    """
    (first,) = submit(target, 0)
    await asyncio.to_thread(model.wait_begun)
    try:
        yield first
    finally:
        model.let_go()


async def queued(target: Batcher, depth: int) -> None:
    """Return once *depth* images wait: tasks that were created have run up to their wait."""
    while target.depth != depth:  # noqa: ASYNC110 - they need turns of the loop, and no time
        await asyncio.sleep(0)


def rows(answers: list[Answer]) -> list[list[float]]:
    return [answer.outputs["probabilities"].tolist() for answer in answers]


def test_what_gathers_while_the_model_runs_becomes_one_batch():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with batcher(model, size=4, observer=seen) as target:
            async with occupied(target, model) as first:
                tasks = submit(target, 1, 2, 3, 4, 5, 6)
                await queued(target, 6)
            answers = await asyncio.gather(first, *tasks)
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert seen.sizes == [1, 4, 2]
        assert [answer.batch_size for answer in answers] == [1, 4, 4, 4, 4, 2, 2]
        assert rows(answers) == [[n, -n] for n in range(7)]
        assert seen.depths[-1] == 0
        assert max(seen.depths) == 6

    drive(test)


def test_an_answer_says_how_long_it_waited_and_ran():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with batcher(model, observer=seen) as target:
            async with occupied(target, model) as first:
                (second,) = submit(target, 1)
                await queued(target, 1)
            one, two = await first, await second
        assert [one.inference_s, two.inference_s] == seen.seconds
        assert 0.0 <= one.queue_s < LONG_S
        # It joined the queue while the first ran, and left it when that ended.
        assert 0.0 < two.queue_s < LONG_S

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
        async with batcher(model, size=size, delay_s=delay_s, observer=seen) as target:
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
                assert isinstance(answer, Answer)
                assert answer.outputs["probabilities"].tolist() == [number, -number]
                assert 1 <= answer.batch_size <= size
        assert max(map(len, model.batches)) <= size
        # Those that left before their turn cost nothing.
        cancelled_in_queue = {numbers[index] for index in leavers} - taken
        assert not cancelled_in_queue & {number for batch in model.batches for number in batch}
        # In order of arrival, and no image is in two batches that succeeded.
        run = list(dict.fromkeys(number for batch in model.batches for number in batch))
        assert run == [number for number in numbers if number in set(run)]
        answered = sum(isinstance(answer, Answer) for answer in found)
        assert answered <= sum(seen.sizes) <= sum(number < guilty_from for number in run)
        assert target.depth == 0

    drive(test)


def test_a_failing_batch_is_run_again_item_by_item_so_that_only_the_guilty_fails():
    async def test() -> None:
        model = HeldModel(held=True, guilty_from=100)
        async with batcher(model, size=4) as target:
            async with occupied(target, model):
                tasks = submit(target, 1, 100, 2)
                await queued(target, 3)
            found = await asyncio.gather(*tasks, return_exceptions=True)
        assert model.batches == [[0], [1, 100, 2], [1], [100], [2]]
        assert rows([found[0], found[2]]) == [[1, -1], [2, -2]]
        assert [found[0].batch_size, found[2].batch_size] == [1, 1]
        assert isinstance(found[1], ValueError)
        assert str(found[1]) == "cannot compute 100"

    drive(test)


def test_a_model_that_gives_too_few_rows_is_our_own_mistake():
    async def test() -> None:
        def run(pixels_NHWC, outputs):
            return {"probabilities": np.zeros((len(pixels_NHWC) + 1, 2), dtype=np.float32)}

        async with Batcher(
            run, max_batch_size=1, max_queue_delay_s=0.0, max_queue_size=1
        ) as target:
            with pytest.raises(
                AssertionError, match=r"^output probabilities has 2 rows for 1 images$"
            ):
                await target.submit(image(1), deadline=in_s(LONG_S))

    drive(test)


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def test() -> None:
        model = HeldModel(held=True)
        async with batcher(model, size=2, queue=3) as target:
            async with occupied(target, model):
                tasks = submit(target, 1, 2, 3)
                await queued(target, 3)
                with pytest.raises(
                    QueueFull,
                    match=r"^3 images wait already, the most allowed; try again in 0\.0 s$",
                ) as refused:
                    await target.submit(image(4), deadline=in_s(LONG_S))
                assert refused.value.retry_after_s == pytest.approx(target.expected_wait_s())
                assert refused.value.retry_after_s > 0.0
                assert target.depth == 3
            assert rows(await asyncio.gather(*tasks)) == [[1, -1], [2, -2], [3, -3]]
        assert model.batches == [[0], [1, 2], [3]]

    drive(test)


def test_the_expected_wait_grows_with_the_images_that_wait():
    async def test() -> None:
        model = HeldModel(held=True)
        async with batcher(model) as target:
            assert target.expected_wait_s() == 0.0
            one_s = target.expected_wait_s(1)
            async with occupied(target, model):
                submit(target, 1, 2)
                await queued(target, 2)
                assert target.expected_wait_s() == pytest.approx(2 * one_s)
                assert target.expected_wait_s(3) == pytest.approx(5 * one_s)

    drive(test)


def test_a_cancelled_caller_makes_room_at_once():
    async def test() -> None:
        model, seen = HeldModel(held=True), Recorder()
        async with batcher(model, queue=2, observer=seen) as target:
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
        async with batcher(model, queue=1, observer=seen) as target:
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


def test_a_deadline_that_has_passed_is_refused_before_it_queues():
    async def test() -> None:
        model = HeldModel()
        async with batcher(model) as target:
            with pytest.raises(
                DeadlineExceeded,
                match=r"^the request's deadline passed before its image could be queued$",
            ):
                await target.submit(image(1), deadline=in_s(-0.001))
        assert model.batches == []

    drive(test)


def test_a_caller_whose_deadline_passes_during_the_run_is_told_so():
    async def test() -> None:
        model = HeldModel(held=True)
        async with batcher(model) as target:
            with pytest.raises(DeadlineExceeded, match="no answer within the deadline"):
                await target.submit(image(1), deadline=in_s(0.01))
            model.let_go()
            assert rows([await target.submit(image(2), deadline=in_s(LONG_S))]) == [[2, -2]]

    drive(test)


def test_an_image_whose_deadline_passed_while_the_event_loop_was_busy_never_reaches_the_model():
    """Its timer had no chance to fire before its turn came."""

    async def test() -> None:
        model = HeldModel()
        async with batcher(model) as target:
            deadline = in_s(0.005)
            task = asyncio.create_task(target.submit(image(1), deadline=deadline))
            await asyncio.sleep(0)
            while time.monotonic() <= deadline:
                pass
            with pytest.raises(DeadlineExceeded, match="no answer within the deadline"):
                await task
        assert model.batches == []

    drive(test)


def test_an_image_whose_caller_left_in_the_very_moment_of_its_turn_never_reaches_the_model():
    async def test() -> None:
        model = HeldModel()
        async with batcher(model) as target:
            (task,) = submit(target, 1)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert model.batches == []

    drive(test)


def test_closing_answers_what_was_accepted_and_refuses_the_rest():
    async def test() -> None:
        model = HeldModel(held=True)
        target = await batcher(model, size=2, delay_s=LONG_S / 2).__aenter__()
        submitted = submit(target, 1, 2)
        await asyncio.to_thread(model.wait_begun)
        submitted += submit(target, 3, 4, 5)
        await queued(target, 3)
        closing = asyncio.create_task(target.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(
            NotReady, match=r"^the service is shutting down; send the request to another instance$"
        ) as refused:
            await target.submit(image(9), deadline=in_s(LONG_S))
        assert refused.value.retry_after_s == 1.0
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
        async with batcher(model, size=4, delay_s=LONG_S) as target:
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
        async with batcher(HeldModel()) as target:
            assert target.depth == 0

    drive(test)


def test_a_full_batch_does_not_wait_for_the_queue_delay():
    async def test() -> None:
        model = HeldModel()
        async with batcher(model, size=3, delay_s=LONG_S) as target:
            tasks = submit(target, 1, 2)
            await queued(target, 2)
            tasks += submit(target, 3)
            assert rows(await asyncio.gather(*tasks)) == [[1, -1], [2, -2], [3, -3]]
        assert model.batches == [[1, 2, 3]]

    drive(test)


def test_a_part_of_a_batch_goes_after_the_queue_delay():
    async def test() -> None:
        model = HeldModel()
        async with batcher(model, size=3, delay_s=0.02) as target:
            tasks = submit(target, 1, 2)
            answers = await asyncio.gather(*tasks)
        assert model.batches == [[1, 2]]
        # Timers of the event loop may fire a clock tick early.
        assert answers[0].queue_s >= 0.02 - 0.002

    drive(test)


def test_the_queue_delay_counts_from_arrival():
    """An image that waited for the model longer than the delay waits no longer."""

    async def test() -> None:
        model = HeldModel(held=True)
        async with batcher(model, size=3, delay_s=0.02) as target:
            async with occupied(target, model) as first:
                (task,) = submit(target, 1)
                await queued(target, 1)
                with pytest.raises(DeadlineExceeded):
                    await target.submit(image(2), deadline=in_s(0.03))
            await first
            # It went the moment the model was free, so this one is too late to join it.
            (latecomer,) = submit(target, 3)
            answer = await task
            await latecomer
        assert model.batches == [[0], [1], [3]]
        assert 0.02 <= answer.queue_s < LONG_S

    drive(test)


def test_each_image_gets_the_outputs_it_asked_for_from_one_run():
    async def test() -> None:
        model = HeldModel(held=True)
        async with batcher(model) as target:
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
    """200 callers at once need no more than the 25 full batches, and the first one that went alone."""

    async def test() -> None:
        model, seen = HeldModel(), Recorder()
        async with batcher(model, size=8, queue=200, observer=seen) as target:
            answers = await asyncio.gather(*submit(target, *range(200)))
        assert rows(answers) == [[n, -n] for n in range(200)]
        assert sum(seen.sizes) == 200
        assert len(seen.sizes) <= 26

    drive(test)


def test_clients_take_turns_so_that_many_images_of_one_do_not_hold_up_anothers_one():
    async def test() -> None:
        model = HeldModel(held=True)
        async with batcher(model, size=2) as target:
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
        async with batcher(model, size=4) as target:
            async with occupied(target, model):
                tasks = submit(target, 10, 11, bulk=True)
                await queued(target, 2)
                tasks += submit(target, 1, 2, 3, 4, 5)
                await queued(target, 7)
            await asyncio.gather(*tasks)
        assert model.batches == [[0], [1, 2, 3, 4], [10, 5, 11]]

    drive(test)


def test_the_queue_is_bounded_in_bytes_and_takes_one_image_of_any_size():
    async def test() -> None:
        model = HeldModel(held=True)
        size = image(0).nbytes
        async with batcher(model, max_queue_bytes=2 * size) as target:
            async with occupied(target, model):
                leaver, stayer = submit(target, 1, 2)
                await queued(target, 2)
                with pytest.raises(
                    QueueFull,
                    match=(
                        rf"^images of {2 * size} bytes wait already and {2 * size} may; try again"
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


def test_several_batches_run_at_a_time_where_that_is_allowed():
    async def test() -> None:
        model = HeldModel(held=True)
        async with batcher(model, size=2, max_in_flight=2) as target:
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
        target = await batcher(model, size=1, max_in_flight=3).__aenter__()
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
    st.tuples(st.integers(1, 2**24 - 1), st.sampled_from(["", "a", "b"]), st.booleans(), st.sampled_from(["stays", "leaves", "late", "hurried"])),
    min_size=1, max_size=40, unique_by=lambda caller: caller[0],
)  # fmt: skip
"""A caller: its image's number, its client's name, whether it is bulk, and what becomes of it."""


@settings(deadline=None, max_examples=60)
@given(
    callers=CALLERS,
    size=st.integers(1, 9),
    queue=st.integers(1, 40),
    in_flight=st.integers(1, 3),
    guilty_from=st.integers(1, 2**24),
)
def test_whatever_happens_each_caller_gets_its_own_answer_or_its_own_error(
    callers, size, queue, in_flight, guilty_from
):
    """Clients, priorities, full queues, deadlines before, during and after the run, cancellations,
    failures, several runs at a time.
    """

    async def test() -> None:
        model, deadlines = (
            HeldModel(held=True, guilty_from=guilty_from),
            {"late": -1.0, "hurried": 0.02},
        )
        async with batcher(
            model, size=size, queue=max(queue, size), max_in_flight=in_flight
        ) as target:
            tasks = []
            for number, client, bulk, fate in callers:
                tasks += submit(
                    target, number, deadline_s=deadlines.get(fate, LONG_S), client=client, bulk=bulk
                )
            await asyncio.sleep(0)
            full = [task.done() and isinstance(task.exception(), QueueFull) for task in tasks]
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
        for (number, _, _, fate), answer, refused in zip(callers, found, full, strict=True):
            if refused:
                assert isinstance(answer, QueueFull)
            elif fate in ("late", "hurried"):
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


def test_what_is_submitted_when_a_run_ends_takes_part_in_the_next():
    """Whoever waits for the end of a run is called before the next batch is chosen, and may ask at
    any time whether waiting is all it could do.
    """

    async def test() -> None:
        model = HeldModel(held=True)
        freed = asyncio.Event()
        occupied: list[bool] = []

        def on_free() -> None:
            occupied.append(target.is_occupied)
            freed.set()

        target = Batcher(
            model.run, max_batch_size=4, max_queue_delay_s=0.0, max_queue_size=8, on_free=on_free
        )

        async def late() -> None:
            await freed.wait()
            await target.submit(image(3), deadline=in_s(PATIENCE_S))

        async with asyncio.timeout(PATIENCE_S), target:
            assert not target.is_occupied
            first = asyncio.create_task(target.submit(image(1), deadline=in_s(PATIENCE_S)))
            await asyncio.to_thread(model.wait_begun)
            assert target.is_occupied
            rest = [
                asyncio.create_task(target.submit(image(2), deadline=in_s(PATIENCE_S))),
                asyncio.create_task(late()),
            ]
            await asyncio.sleep(0)
            model.let_go()
            await asyncio.gather(first, *rest)
        assert model.batches == [[1], [2, 3]]
        assert occupied[0] is False

    asyncio.run(test())

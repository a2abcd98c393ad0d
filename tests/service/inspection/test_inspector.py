"""The inspecting process: started when asked, ended when idle, late or left."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest

from models.errors import DeadlineExceeded, NotReady, PackageTampered, QueueFull
from models.package.manifest import LIMITS, MODEL_FILE
from models.package.manifest_file import read_manifest
from service.inspection.inspector import WAITING_MAX, Inspector
from tests.models.packages import build_package
from tests.service.held import PATIENCE_S


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("inspected") / "package", cam=True)


def question(package, **changes):
    sha256 = read_manifest(package).files[MODEL_FILE].sha256
    return {
        "what": "layers",
        "model": {"name": "zoo", "version": 1},
        "package": str(package),
        "sha256": sha256,
        "precision": "fp32",
        "limits": LIMITS._asdict(),
        "served": [sha256],
        "timed": False,
        **changes,
    }


def inspecting(work: Callable[[Inspector], Awaitable[None]], **options: float) -> None:
    async def test() -> None:
        inspector = Inspector(**options)
        try:
            await work(inspector)
        finally:
            await inspector.close()

    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))


def soon() -> float:
    return time.monotonic() + PATIENCE_S


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nothing tells when a process begins
            await asyncio.sleep(0.01)


def test_it_answers_and_keeps_its_process(package):
    async def work(inspector: Inspector) -> None:
        found = json.loads(await inspector.ask(question(package), deadline=soon()))
        assert [layer["name"] for layer in found["layers"]][-1] == "probabilities"
        process = inspector._process
        await inspector.ask(question(package), deadline=soon())
        assert inspector._process is process

    inspecting(work)


def test_without_requests_the_process_ends(package):
    async def work(inspector: Inspector) -> None:
        await inspector.ask(question(package), deadline=soon())
        process = inspector._process
        assert process is not None
        await asyncio.wait_for(process.wait(), PATIENCE_S)
        await inspector.ask(question(package), deadline=soon())

    inspecting(work, idle_s=0.01)


def test_a_request_that_is_late_ends_the_process_and_the_next_is_answered(package):
    async def work(inspector: Inspector) -> None:
        with pytest.raises(DeadlineExceeded, match="before the request's deadline"):
            await inspector.ask(question(package), deadline=time.monotonic() + 0.001)
        assert inspector._process is None
        await inspector.ask(question(package), deadline=soon())

    inspecting(work)


def test_a_caller_that_leaves_ends_what_runs_for_it(package):
    async def work(inspector: Inspector) -> None:
        asking = asyncio.create_task(inspector.ask(question(package), deadline=soon()))
        await until(lambda: inspector._process is not None)
        process = inspector._process
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert process is not None
        assert process.returncode is not None

    inspecting(work)


def test_what_waits_is_bounded_and_told_when_to_come_back(package):
    async def work(inspector: Inspector) -> None:
        places = WAITING_MAX + 1
        tasks = [
            asyncio.create_task(inspector.ask(question(package), deadline=soon()))
            for _ in range(places)
        ]
        await until(lambda: inspector._waiting == places)
        with pytest.raises(QueueFull, match="try again in") as refused:
            inspector.admit()
        assert refused.value.retry_after_s > 0.0
        await asyncio.gather(*tasks)
        inspector.admit()

    inspecting(work)


def test_a_package_that_was_replaced_is_refused_by_name(package):
    async def work(inspector: Inspector) -> None:
        with pytest.raises(PackageTampered, match="was replaced by another package"):
            await inspector.ask(question(package, sha256="0" * 64), deadline=soon())
        # A refusal is an answer: the process stays.
        assert inspector._process is not None

    inspecting(work)


def test_a_closed_inspector_starts_nothing(package):
    async def work(inspector: Inspector) -> None:
        await inspector.close()
        with pytest.raises(NotReady, match="shutting down"):
            await inspector.ask(question(package), deadline=soon())

    inspecting(work)

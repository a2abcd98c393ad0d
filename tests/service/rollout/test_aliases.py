"""A worker and the aliases of its models: what is moved in the store is served soon, and what
cannot be served changes nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from models.errors import BadRequest, NotReady, UnknownModel
from models.store.store import ModelRef, Store
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline
from service.observe.metrics import exposition
from service.rollout import aliases
from service.rollout import worker as module
from service.rollout.last_good_version import FILE, keep_versions, read_versions
from service.rollout.worker import Worker
from service.settings import ServiceSettings
from tests.models.packages import build_package
from tests.service.held import PATIENCE_S, in_s

LABELS = ("ant", "bee", "cow")
VERSIONS = 4


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("packages")
    return [build_package(folder / str(seed), labels=LABELS, seed=seed) for seed in range(VERSIONS)]


@pytest.fixture
def store(tmp_path, packages) -> Store:
    """Model `ants` in four versions; production is 1, candidate is 4."""
    made = Store(tmp_path / "store")
    for package in packages:
        made.publish(package, name="ants")
    return made


def drive(store: Store, test: Callable[[Worker], Awaitable[None]], **settings: object) -> None:
    async def bounded() -> None:
        asked = {
            "threads": 1,
            "max_batch_size": 2,
            "follow_interval_s": 0.01,
            "drift_budget": 0.0,
            **settings,
        }
        worker = Worker(ServiceSettings(store=store.root, **asked))
        async with asyncio.timeout(PATIENCE_S), worker.running():
            await test(worker)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Return once *condition* holds; the test's own bound ends the wait."""
    while not condition():  # noqa: ASYNC110 - a file is watched, which sets no event
        await asyncio.sleep(0.001)


def version(worker: Worker, **asked: str) -> int:
    return worker.pipeline(**asked).classifier.version


def break_golden(folder: Path) -> None:
    golden = folder / "golden" / "golden.json"
    golden.write_text(golden.read_text(encoding="utf-8") + " ", encoding="utf-8")


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_promoted_version_is_served_and_the_one_before_stays_warm(store, caplog):
    caplog.set_level(logging.INFO, logger="loupe")

    async def test(worker: Worker) -> None:
        assert version(worker) == 1
        with pytest.raises(
            UnknownModel, match=r"^version '2' of ants is not served; served: 1, production$"
        ):
            worker.pipeline(version="2")
        store.promote("ants", 2)
        await until(lambda: version(worker) == 2)
        assert [version(worker, version=asked) for asked in ("1", "2", "production")] == [1, 2, 2]
        assert [one.version for one in worker.served()] == [2]

    drive(store, test)
    assert "serving: ants@production is version 2, was 1" in caplog.messages


def test_a_rollback_opens_nothing(store, monkeypatch):
    opened: list[int] = []
    really = module.open_classifier
    monkeypatch.setattr(
        module,
        "open_classifier",
        lambda ref, settings: (opened.append(ref.version), really(ref, settings))[1],
    )

    async def test(worker: Worker) -> None:
        store.promote("ants", 2)
        await until(lambda: version(worker) == 2)
        store.rollback("ants")
        await until(lambda: version(worker) == 1)
        store.promote("ants", 2)
        await until(lambda: version(worker) == 2)

    drive(store, test)
    assert opened == [1, 2]


def test_only_one_version_before_stays_open(store):
    async def test(worker: Worker) -> None:
        first = worker.pipeline()
        for number in (2, 3):
            store.promote("ants", number)
            await until(lambda number=number: version(worker) == number)
        with pytest.raises(
            UnknownModel, match=r"^version '1' of ants is not served; served: 2, 3, production$"
        ):
            worker.pipeline(version="1")
        # This task holds version 1: it is open until the task ends, though nobody is given it any
        # more.
        result = await classify(first, store)
        assert result.predictions[0].label in LABELS
        retiring = [task for task in asyncio.all_tasks() if task.get_name() == "retire ants:1"]
        assert len(retiring) == 1

    drive(store, test)


def test_a_version_closes_when_its_last_request_ends(store):
    async def test(worker: Worker) -> None:
        go = asyncio.Event()

        async def request() -> Pipeline:
            pipeline = worker.pipeline()
            await go.wait()
            await classify(pipeline, store)
            return pipeline

        under_way = asyncio.create_task(request())
        await asyncio.sleep(0)
        for number in (2, 3):
            store.promote("ants", number)
            # Asked in tasks of their own: what this task is given it would hold.
            await until_in_tasks(lambda: version(worker), number)
        (retiring,) = [task for task in asyncio.all_tasks() if task.get_name() == "retire ants:1"]
        assert not retiring.done()
        go.set()
        pipeline = await under_way
        await retiring
        with pytest.raises(Exception, match="shutting down"):
            pipeline.admit()

    drive(store, test)


async def until_in_tasks(ask: Callable[[], int], wanted: int) -> None:
    async def one() -> int:
        return ask()

    while await asyncio.create_task(one()) != wanted:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.001)


async def classify(pipeline: Pipeline, store: Store):
    encoded = (store.root / "ants" / "1" / "golden" / "0.png").read_bytes()
    return (await pipeline.classify(encoded, top_k=1, deadline=in_s(PATIENCE_S))).classification


def test_a_version_that_is_refused_changes_nothing_but_a_metric_and_a_line(store, caplog):
    """Its alias is moved by hand: `promote` itself would refuse it."""
    break_golden(store.root / "ants" / "3")
    before = sample("loupe_model_load_failures_total", model="ants")

    async def test(worker: Worker) -> None:
        move_by_hand(store, production=3)
        await until(lambda: sample("loupe_model_load_failures_total", model="ants") == before + 1)
        assert version(worker) == 1
        # Looked at once, and not again until the alias is moved again.
        await asyncio.sleep(0.05)
        assert sample("loupe_model_load_failures_total", model="ants") == before + 1
        move_by_hand(store, production=2)
        await until(lambda: version(worker) == 2)

    drive(store, test)
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.getMessage().startswith("ants:3 was refused and changes nothing: ")
    assert line.exc_info is None


def move_by_hand(store: Store, **aliases: int) -> None:
    path = store.root / "ants" / "aliases.json"
    temporary = path.with_name("new.json")
    temporary.write_text(str(aliases).replace("'", '"'), encoding="utf-8")
    temporary.replace(path)


@pytest.mark.parametrize("content", ["{", '{"production": 77}', "{}"])
def test_aliases_that_make_no_sense_change_nothing(store, content, caplog):
    before = sample("loupe_model_load_failures_total", model="ants")

    async def test(worker: Worker) -> None:
        (store.root / "ants" / "aliases.json").write_text(content, encoding="utf-8")
        await until(lambda: sample("loupe_model_load_failures_total", model="ants") == before + 1)
        assert version(worker) == 1

    drive(store, test)
    assert caplog.messages[0].startswith("ants continues as it is: ")


def test_a_pinned_version_stays(store):
    async def test(worker: Worker) -> None:
        store.promote("ants", 3)
        await asyncio.sleep(0.05)
        assert version(worker) == 2
        with pytest.raises(
            UnknownModel, match=r"^version 'production' of ants is not served; served: 2$"
        ):
            worker.pipeline(version="production")

    drive(store, test, model="ants:2")


def test_a_candidate_is_answered_by_when_it_is_asked_for_and_promoted_without_opening(
    store, monkeypatch
):
    opened: list[int] = []
    really = module.open_classifier
    monkeypatch.setattr(
        module,
        "open_classifier",
        lambda ref, settings: (opened.append(ref.version), really(ref, settings))[1],
    )

    async def test(worker: Worker) -> None:
        assert [
            version(worker),
            version(worker, version="candidate"),
            version(worker, version="4"),
        ] == [1, 4, 4]
        store.promote("ants", 4)
        await until(lambda: version(worker) == 4)

    drive(store, test, model="ants,ants@candidate")
    assert opened == [1, 4]


def test_several_models_move_each_by_itself(store, packages):
    store.publish(packages[1], name="bees")
    store.publish(packages[2], name="bees")

    async def test(worker: Worker) -> None:
        assert [(one.name, one.version) for one in worker.served()] == [("bees", 1), ("ants", 1)]
        assert worker.pipeline().classifier.name == "bees"
        store.promote("bees", 2)
        await until(lambda: version(worker, model="bees") == 2)
        assert version(worker, model="ants") == 1
        with pytest.raises(UnknownModel, match=r"^model 'cows' is not served; served: bees, ants$"):
            worker.pipeline("cows")

    drive(store, test, model="bees,ants")


def test_of_every_model_of_the_store_one_must_be_asked_for(store, packages):
    store.publish(packages[0], name="bees")

    async def test(worker: Worker) -> None:
        with pytest.raises(
            BadRequest, match=r"^several models are served \(ants, bees\); say which with model=$"
        ):
            worker.pipeline()
        assert version(worker, model="bees") == 1

    drive(store, test, model="*")


def test_the_canary_answers_its_share_of_the_clients_and_each_always_alike(store):
    async def test(worker: Worker) -> None:
        clients = [f"client {number}" for number in range(1000)]
        first = [version(worker, client=client) for client in clients]
        assert set(first) == {1, 4}
        # Binomial: 1000 clients at 0.3 have a deviation of 14.5; five of them.
        assert first.count(4) == pytest.approx(300, abs=73)
        assert [version(worker, client=client) for client in clients] == first
        assert version(worker) == 1, "who has no key is no canary"
        assert {
            version(worker, client=client, version="production") for client in clients[:50]
        } == {1}
        store.promote("ants", 4)
        await until(lambda: version(worker) == 4)
        assert {version(worker, client=client) for client in clients} == {4}

    drive(store, test, canary_alias="candidate", canary_share=0.3)


def test_a_canary_that_is_refused_leaves_every_client_with_production(store, caplog):
    break_golden(store.root / "ants" / "4")

    async def test(worker: Worker) -> None:
        assert {version(worker, client=str(number)) for number in range(100)} == {1}

    drive(store, test, canary_alias="candidate", canary_share=0.9)
    assert caplog.messages[0].startswith("ants:4 was refused and changes nothing: ")


def test_a_worker_that_starts_while_its_alias_is_broken_serves_what_the_others_serve(
    store, tmp_path, monkeypatch, caplog
):
    (tmp_path / "server").mkdir()
    monkeypatch.setattr(module, "metrics_folder", lambda: str(tmp_path / "server"))

    async def promoted(worker: Worker) -> None:
        store.promote("ants", 2)
        await until(lambda: version(worker) == 2)

    drive(store, promoted)
    break_golden(store.root / "ants" / "3")
    move_by_hand(store, production=3)

    async def restarted(worker: Worker) -> None:
        assert version(worker) == 2

    drive(store, restarted)
    assert caplog.messages[0].startswith("ants:3 was refused, and version 2 continues: ")


def test_what_is_served_no_more_is_not_said_to_be(store):
    async def test(worker: Worker) -> None:
        store.promote("ants", 2)
        await until(lambda: version(worker) == 2)
        lines = [
            line
            for line in exposition().decode().splitlines()
            if line.startswith("loupe_model_info{") and 'name="ants"' in line
        ]
        assert lines == [
            'loupe_model_info{name="ants",precision="fp32",provider="cpu",version="2"} 1.0'
        ]

    drive(store, test)


def test_what_failed_is_tried_again_after_a_while_though_no_alias_moves(store, monkeypatch, caplog):
    """Storage that fails for a moment: the promoted version is opened by the next try."""
    monkeypatch.setattr(aliases, "RETRY_FIRST_S", 0.01)
    really, failures = module.open_classifier, iter([OSError(5, "Input/output error")] * 3)

    def sometimes(ref: ModelRef, settings: ServiceSettings) -> Classifier:
        if ref.version == 2 and (failure := next(failures, None)) is not None:
            raise failure
        return really(ref, settings)

    monkeypatch.setattr(module, "open_classifier", sometimes)

    async def test(worker: Worker) -> None:
        store.promote("ants", 2)
        await until(lambda: version(worker) == 2)

    drive(store, test)
    assert [
        record.getMessage() for record in caplog.records if record.levelno == logging.ERROR
    ] == ["ants:2 was refused and changes nothing: [Errno 5] Input/output error"]


def test_a_model_that_was_refused_at_the_start_is_tried_again_after_a_while(store, monkeypatch):
    monkeypatch.setattr(aliases, "RETRY_FIRST_S", 0.01)
    really, failures = module.open_classifier, iter([RuntimeError("no such kernel")] * 2)

    def sometimes(ref: ModelRef, settings: ServiceSettings) -> Classifier:
        if (failure := next(failures, None)) is not None:
            raise failure
        return really(ref, settings)

    monkeypatch.setattr(module, "open_classifier", sometimes)

    async def test(worker: Worker) -> None:
        with pytest.raises(NotReady, match="no such kernel"):
            worker.pipeline()
        assert worker.is_alive()
        await until(lambda: bool(worker._models))
        assert version(worker) == 1

    drive(store, test)


def test_the_following_survives_any_error_and_says_it_once(store, monkeypatch, caplog):
    failures = iter([MemoryError("no room")] * 5 + [RuntimeError("another")])
    before, really = sample("loupe_follow_failures_total"), aliases.AliasWatch.moved

    def moved(watch: aliases.AliasWatch) -> list[str]:
        if (failure := next(failures, None)) is not None:
            raise failure
        return really(watch)

    monkeypatch.setattr(aliases.AliasWatch, "moved", moved)

    async def test(worker: Worker) -> None:
        store.promote("ants", 2)
        await until(lambda: version(worker) == 2)
        assert worker.is_alive()

    drive(store, test)
    assert sample("loupe_follow_failures_total") == before + 6
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info[0] for record in said] == [MemoryError, RuntimeError]


def test_only_a_worker_whose_following_ended_is_dead(store):
    async def test(worker: Worker) -> None:
        assert worker.is_alive()
        (task,) = [one for one in asyncio.all_tasks() if one.get_name() == "follow aliases"]
        task.cancel()
        await asyncio.wait({task})
        assert not worker.is_alive()

    drive(store, test)


def test_the_waits_between_tries_grow_and_are_bounded(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(aliases.time, "monotonic", lambda: clock)
    retry = aliases.Retry()
    assert not retry.is_due
    for wait_s in (5, 10, 20, 40, 80, 160, 300, 300):
        retry.failed()
        clock += wait_s - 0.1
        assert not retry.is_due
        clock += 0.1
        assert retry.is_due
    retry.succeeded()
    assert not retry.is_due


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"ants": "two"}', b"{"])
def test_a_damaged_note_of_the_last_good_version_is_no_note(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert read_versions(str(tmp_path)) == {}
    keep_versions(str(tmp_path), {"ants": 2})
    assert read_versions(str(tmp_path)) == {"ants": 2}


def test_a_note_that_cannot_be_written_harms_nobody(tmp_path, caplog):
    keep_versions(str(tmp_path / "gone"), {"ants": 2})
    (line,) = caplog.messages
    assert line.startswith("a worker that is started again may not know version {'ants': 2}: ")

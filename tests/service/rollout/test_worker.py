"""A worker: when it is ready, what it says when it is not, and that it drains."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.errors import ConfigError, NotReady, UnknownModel
from models.machine import threads_per_worker
from models.store.store import Store
from service.rollout import opening
from service.rollout import worker as module
from service.rollout.aliases import selected_models
from service.rollout.worker import Worker
from service.settings import ServiceSettings
from tests.models.packages import build_package, edit_model
from tests.service.held import PATIENCE_S, in_s


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Handlers of `service.server.bento`, if it was imported before, keep records from caplog.
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)


def settings(store: Path, **values: object) -> ServiceSettings:
    return ServiceSettings(store=store, threads=1, max_batch_size=2, **values)


def drive(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(bounded())


@pytest.fixture
def store(tmp_path) -> Path:
    Store(tmp_path / "store").publish(build_package(tmp_path / "package"), name="ants")
    return tmp_path / "store"


def test_it_takes_requests_only_once_its_model_is_open_and_none_after_it_drained(store, caplog):
    caplog.set_level(logging.INFO, logger="loupe")

    async def test() -> None:
        worker = Worker(settings(store))
        with pytest.raises(
            NotReady, match=r"^the model is being verified and warmed up; ask /readyz$"
        ) as early:
            worker.pipeline()
        assert early.value.retry_after_s == 1.0
        async with worker.running():
            pipeline = worker.pipeline()
            encoded = (store / "ants" / "1" / "golden" / "0.png").read_bytes()
            result = await pipeline.classify(encoded, top_k=1, deadline=in_s(PATIENCE_S))
            assert result.classification.predictions[0].label in ("ant", "bee")
        with pytest.raises(
            NotReady, match=r"^the service is shutting down; send the request to another instance$"
        ):
            worker.pipeline()
        with pytest.raises(NotReady, match="shutting down"):
            pipeline.admit()

    drive(test)
    assert caplog.messages == [
        f"ready: ants version 1 on cpu, 1 threads, {threads_per_worker(1)} lanes"
    ]


def test_a_refused_model_is_named_with_the_reason_and_logged_without_traceback(store, caplog):
    def shift(model: onnx.ModelProto) -> None:
        (bias,) = [one for one in model.graph.initializer if one.name == "bias"]
        shifted_K = onnx.numpy_helper.to_array(bias) + np.array([3.0, 0.0], dtype=np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(shifted_K, bias.name))

    edit_model(store / "ants" / "1", shift)

    async def test() -> None:
        worker = Worker(settings(store))
        async with worker.running():
            with pytest.raises(
                NotReady, match=r"^the model was refused: .*golden image 0\.png differs by "
            ) as refused:
                worker.pipeline()
            assert refused.value.retry_after_s is None, "waiting helps nothing"

    drive(test)
    (record,) = caplog.records
    assert record.getMessage().startswith("not ready: ")
    assert "golden image 0.png" in record.getMessage()
    assert record.exc_info is None


def test_an_error_that_nobody_foresaw_is_named_too(store, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(module, "open_classifier", fail)

    async def test() -> None:
        worker = Worker(settings(store))
        async with worker.running():
            with pytest.raises(NotReady, match=r"^the model was refused: no such kernel$"):
                worker.pipeline()

    drive(test)
    (record,) = caplog.records
    assert record.getMessage() == "not ready: the models could not be opened"
    assert record.exc_info is not None, "it is our own mistake, and the traceback leads to it"


def test_a_model_that_takes_long_to_open_lets_the_probes_be_answered(store, monkeypatch):
    """After the patience has passed the worker runs without its model, and has it later."""
    go, opened = threading.Event(), module.open_classifier

    def slowly(*asked: object) -> object:
        assert go.wait(PATIENCE_S)
        return opened(*asked)

    monkeypatch.setattr(module, "open_classifier", slowly)
    monkeypatch.setattr(module, "OPENING_PATIENCE_S", 0.01)

    async def test() -> None:
        worker = Worker(settings(store))
        async with worker.running():
            with pytest.raises(NotReady, match="being verified and warmed up"):
                worker.pipeline()
            go.set()
            (opening,) = [task for task in asyncio.all_tasks() if task.get_name() == "open models"]
            await opening
            assert worker.pipeline().classifier.name == "ants"

    drive(test)


def ends(setting: str, store: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    return [
        (one.name, one.primary, one.others)
        for one in selected_models(settings(store, model=setting))
    ]


def test_the_only_model_needs_no_name(store):
    assert ends("", store) == [("ants", "@production", ())]


def test_several_models_are_named_in_the_order_of_the_setting(store, tmp_path):
    Store(store).publish(tmp_path / "package", name="bees")
    assert ends("bees:1, ants@candidate,bees@candidate", store) == [
        ("bees", ":1", ("@candidate",)),
        ("ants", "@candidate", ()),
    ]
    assert ends("*", store) == [("ants", "@production", ()), ("bees", "@production", ())]


def test_canary_and_shadow_are_opened_beside_what_follows_an_alias_and_not_beside_what_is_pinned(
    store,
):
    asked = {"canary_alias": "next", "canary_share": 0.5, "shadow_alias": "candidate"}
    (followed,) = selected_models(settings(store, model="ants", **asked))
    assert followed.others == ("@next", "@candidate")
    (pinned,) = selected_models(settings(store, model="ants:1", **asked))
    assert pinned.others == ()


def test_a_model_named_twice_is_refused(store):
    with pytest.raises(
        ConfigError, match=r"^LOUPE_MODEL 'ants,ants@production' names ants@production twice$"
    ):
        selected_models(settings(store, model="ants,ants@production"))


def test_of_several_models_one_must_be_named(store, tmp_path):
    Store(store).publish(tmp_path / "package", name="bees")
    with pytest.raises(
        ConfigError,
        match=(
            r"^the store .* has several models \(ants, bees\); say which with --model or"
            r" LOUPE_MODEL, or \* for all of"
        ),
    ):
        selected_models(settings(store))


@pytest.mark.parametrize("made", [True, False])
def test_a_store_without_models_says_how_to_fill_it(tmp_path, made):
    if made:
        (tmp_path / "empty").mkdir()
    with pytest.raises(
        UnknownModel,
        match=(
            r"^the store .*empty has no model; `make demo` makes one, `loupe publish PACKAGE --name"
            r" NAME` puts yours"
        ),
    ):
        selected_models(settings(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, threads_per_worker(1)),
        ({"lanes": 3}, 3),
        ({"lanes": 2, "provider": "cuda"}, 2),
        ({"provider": "cuda"}, 0),
        ({"max_queue_delay_ms": 1.0}, 0),
        ({"max_in_flight": 1}, 0),
        ({"decode_threads": 1}, 0),
    ],
)
def test_a_cpu_has_a_lane_for_each_core_and_stages_are_for_whoever_asks(given, expected):
    assert opening.lanes_of(ServiceSettings(**given)) == expected


@pytest.mark.parametrize(
    ("core_s", "given", "expected"),
    [
        (0.009, {}, 1),
        (0.009, {"lanes": 1}, 4),
        (0.009, {"lanes": 2}, 2),
        (0.009, {"lanes": 8}, 1),
        (0.011, {}, 4),
        (0.011, {"threads": 2}, 2),
        (0.009, {"max_in_flight": 1}, 4),
        (0.011, {"workers": 4}, 1),
    ],
)
def test_a_quick_model_has_one_thread_in_its_lanes_and_a_slow_one_all_cores(
    store, monkeypatch, core_s, given, expected
):
    """Of four cores."""
    monkeypatch.setattr(opening, "threads_per_worker", lambda workers: 4 // workers)
    monkeypatch.setattr(opening, "_core_s", lambda classifier: core_s)
    classifier = module.open_classifier(
        Store(store).resolve("ants"), ServiceSettings(store=store, **given)
    )
    assert classifier.model.threads == expected


@pytest.mark.parametrize(
    ("cpus", "given", "threads", "expected"),
    [
        ((2, 5), {}, 1, (2, 5)),
        ((2, 5), {"lanes": 2}, 1, (2, 5)),
        ((2, 5), {"lanes": 1}, 1, ()),
        ((2, 5), {}, 2, ()),
        ((2, 5), {"workers": 2}, 1, ()),
        ((2, 5, 7), {}, 1, ()),  # a quota of two of three
        ((2, 5, 7), {"lanes": 3}, 1, ()),
        ((), {}, 1, ()),
    ],
)
def test_each_lane_keeps_to_a_cpu_where_one_worker_has_the_few_there_are(
    monkeypatch, cpus, given, threads, expected
):
    monkeypatch.setattr(opening, "threads_per_worker", lambda workers: 2 // workers)
    monkeypatch.setattr(opening, "cpus_of_process", lambda: cpus)
    assert opening.lane_cpus(ServiceSettings(**given), threads=threads) == expected


def test_the_time_of_an_image_is_that_of_one_core(store):
    classifier = module.open_classifier(Store(store).resolve("ants"), ServiceSettings(store=store))
    assert 0.0 < opening._core_s(classifier) < opening.QUICK_S

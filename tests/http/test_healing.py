"""A worker whose model was refused becomes ready without a restart: a real server process, and a
store that an operator puts right.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest

from models.store.store import Store
from tests.http.conftest import LABELS
from tests.http.server import ANSWER_PATIENCE_S, POLL_S, Server, environment, loupe, serving
from tests.models.packages import build_package, edit_model

PATIENCE_S = 30.0
FOLLOW_S = 0.1


@pytest.fixture
def zoo(tmp_path: Path) -> Store:
    """Version 1 is good; version 2 passes `verify_package` and gives other answers than its golden
    images have. Production is 2.
    """
    store = Store(tmp_path / "store")
    for seed in (1, 2):
        store.publish(build_package(tmp_path / str(seed), labels=LABELS, seed=seed), name="zoo")
    edit_model(store.root / "zoo" / "2", shift_bias)
    store.promote("zoo", 2)
    return store


def shift_bias(model: onnx.ModelProto) -> None:
    (bias,) = [one for one in model.graph.initializer if one.name == "bias"]
    shifted_K = onnx.numpy_helper.to_array(bias) + np.arange(len(LABELS), dtype=np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(shifted_K, bias.name))


@pytest.fixture
def running(tmp_path: Path, zoo: Store) -> Iterator[Server]:
    with serving(tmp_path, store=zoo.root, ready=False, follow_interval_s=FOLLOW_S) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


def ask(server: Server, path: str) -> httpx.Response | None:
    """The answer; None while nobody listens."""
    try:
        return httpx.get(f"{server.url}{path}", timeout=ANSWER_PATIENCE_S, trust_env=False)
    except httpx.TransportError:
        return None


def wait(condition: Callable[[], bool], server: Server) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < PATIENCE_S, server.log
        time.sleep(POLL_S)


def served(server: Server) -> int | None:
    """The version that answers; None if none does."""
    answer = ask(server, "/v1/models")
    return (
        answer.json()["models"][0]["version"]
        if answer is not None and answer.status_code == 200
        else None
    )


def operator(tmp_path: Path, store: Store, *command: str) -> None:
    subprocess.run(
        loupe("models", *command, "--store", store.root),
        env=environment(tmp_path),
        check=True,
        capture_output=True,
    )


def test_a_refused_model_is_replaced_by_the_operator_and_the_worker_becomes_ready(
    tmp_path, zoo, running
):
    wait(lambda: "not ready: " in running.log, running)
    before = [worker.pid for worker in running.workers()]
    refused = ask(running, "/readyz")
    assert refused is not None
    assert refused.status_code == 503
    assert "golden image" in refused.text
    assert ask(running, "/livez").status_code == 200, "a restart would repair nothing"
    operator(tmp_path, zoo, "promote", "zoo", "1")
    wait(lambda: served(running) == 1, running)
    assert ask(running, "/readyz").status_code == 200
    assert [worker.pid for worker in running.workers()] == before
    assert running.log.count("not ready: ") == 1, "said once, however often it was tried"


def test_a_store_that_vanishes_or_is_damaged_and_returns_is_followed_again(tmp_path, zoo, running):
    wait(lambda: "not ready: " in running.log, running)
    operator(tmp_path, zoo, "rollback", "zoo")
    wait(lambda: served(running) == 1, running)
    away = zoo.root.with_name("away")
    zoo.root.rename(away)
    wait(lambda: "zoo continues as it is: " in running.log, running)
    assert served(running) == 1
    assert (ask(running, "/livez").status_code, ask(running, "/readyz").status_code) == (200, 200)
    away.rename(zoo.root)
    zoo.publish(build_package(tmp_path / "3", labels=LABELS, seed=3), name="zoo")
    zoo.promote("zoo", 3)
    wait(lambda: served(running) == 3, running)
    assert running.log.count("zoo continues as it is: ") == 1
    aliases = zoo.root / "zoo" / "aliases.json"
    aliases.write_bytes(b"\xff\xfe{")
    wait(lambda: "aliases.json is damaged" in running.log, running)
    aliases.write_text(json.dumps({"production": 1}), encoding="utf-8")
    wait(lambda: served(running) == 1, running)


@pytest.mark.slow
def test_a_worker_that_starts_without_its_store_is_ready_once_the_store_is_back(
    tmp_path, zoo, running
):
    """The worker is killed while the store is away: the one that takes its place finds nothing, and
    waits for it.
    """
    wait(lambda: "not ready: " in running.log, running)
    away = zoo.root.with_name("away")
    zoo.root.rename(away)
    for worker in running.workers():
        worker.kill()
    wait(lambda: "has no model" in running.log, running)
    Store(away).rollback("zoo")
    away.rename(zoo.root)
    wait(lambda: served(running) == 1, running)

"""A real Prometheus scrapes a server with two workers: it understands what it gets, its rules hold,
and the dashboard asks for what is there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from models.store.store import Store
from service.observe import drift, metrics, worker_board
from service.settings import ServiceSettings
from tests.http.server import ANSWER_PATIENCE_S, POLL_S, free_port, serving

DOCKER = Path(__file__).resolve().parents[2] / "docker"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
PATIENCE_S = 60.0
REQUESTS = 150
RULES = 16
SOURCES = (metrics, drift, worker_board)
"""Where metrics are made."""


def expressions() -> list[str]:
    """Every query of the dashboard and the rules, with the dashboard's variables filled in."""
    dashboard = json.loads(
        (DOCKER / "grafana" / "dashboards" / "loupe.json").read_text(encoding="utf-8")
    )
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) >= 14
    rules = re.findall(
        r"expr: (?:>-\n)?((?:.|\n)+?)\n +(?:for|labels):",
        (DOCKER / "prometheus" / "alerts.yml").read_text(encoding="utf-8"),
    )
    assert len(rules) == RULES
    return [
        one.replace("$__rate_interval", "1m").replace("$instance", ".*") for one in (*asked, *rules)
    ]


def test_dashboard_and_rules_name_no_metric_that_is_not_there():
    source = "".join(Path(one.__file__).read_text(encoding="utf-8") for one in SOURCES)
    known = set(re.findall(r'"(loupe_[a-z_]+)"', source))
    named = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for one in expressions()
        for name in re.findall(r"loupe_[a-z_]+", one)
    }
    assert len(named) > 10
    assert named - known == set()


def test_every_metric_stands_in_the_operations_guide():
    source = "".join(Path(one.__file__).read_text(encoding="utf-8") for one in SOURCES)
    known = set(
        re.findall(
            r'(?:Counter|Histogram|Gauge|GaugeMetricFamily|CounterMetricFamily)\(\s*"(loupe_[a-z_]+)"',
            source,
        )
    )
    assert len(known) >= 18
    guide = (DOCKER.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    assert {
        name for name in known if f"`{name}`" not in guide and f"`{name}{{" not in guide
    } == set()


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize("what", ["rules", "config"])
def test_promtool_takes_the_files(what):
    assert PROMTOOL is not None
    file = {"rules": "alerts.yml", "config": "prometheus.yml"}[what]
    done = subprocess.run(
        [PROMTOOL, "check", what, file],
        cwd=DOCKER / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RULES} rules found" in done.stdout


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_every_alert_fires_when_it_should_and_only_then():
    assert PROMTOOL is not None
    folder = DOCKER / "prometheus"
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "tests.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rules = (folder / "alerts.yml").read_text(encoding="utf-8")
    tested = re.findall(r"alertname: (\w+)", (folder / "tests.yml").read_text(encoding="utf-8"))
    assert set(tested) == set(re.findall(r"alert: (\w+)", rules))


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The address of a Prometheus that scrapes *target* each second."""
    assert PROMETHEUS is not None
    config = (DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    assert "loupe:3000" in config
    (folder / "prometheus.yml").write_text(
        config.replace("loupe:3000", target).replace("15s", "1s"), encoding="utf-8"
    )
    shutil.copy(DOCKER / "prometheus" / "alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    command = [
        PROMETHEUS,
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def query(url: str, expression: str) -> list[dict]:
    response = httpx.get(
        f"{url}/api/v1/query",
        params={"query": expression},
        timeout=ANSWER_PATIENCE_S,
        trust_env=False,
    )
    assert response.status_code == 200, (expression, response.text)
    result: list[dict] = response.json()["data"]["result"]
    return result


def wait_for(url: str, expression: str) -> list[dict]:
    """What *expression* gives, once it gives something."""
    started = time.monotonic()
    while True:
        try:
            found = query(url, expression)
        except httpx.TransportError:
            found = []
        if found:
            return found
        assert time.monotonic() - started < PATIENCE_S, f"nothing for {expression}"
        time.sleep(POLL_S)


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
@pytest.mark.timeout(300)
def test_prometheus_understands_two_workers(tmp_path: Path, store: Path, photo: bytes):
    folder = tmp_path / "prometheus"
    folder.mkdir()
    shutil.copytree(store, tmp_path / "store")
    settings = {
        "drift_budget": 1.0,
        "follow_interval_s": 0.1,
        "shadow_alias": "candidate",
        "cache_bytes": 0,
    }
    with (
        serving(tmp_path, store=tmp_path / "store", workers=2, **settings) as server,
        prometheus(folder, f"127.0.0.1:{server.port}") as url,
    ):
        for _ in range(REQUESTS):
            # Each on a connection of its own, so that both workers get some.
            assert (
                httpx.post(
                    f"{server.url}/v1/classify",
                    content=photo,
                    timeout=ANSWER_PATIENCE_S,
                    trust_env=False,
                ).status_code
                == 200
            )
        assert wait_for(url, "up == 1")
        wait_for(url, f'loupe_requests_total{{route="/v1/classify",code="200"}} == {REQUESTS}')
        # Production and its shadow.
        assert {one["metric"]["version"] for one in query(url, "loupe_model_info")} == {"1", "2"}
        assert wait_for(url, "loupe_shadow_total")
        wait_for(url, "loupe_drift_images >= 100")
        # The photos are all one: their distribution is far from the evaluation's.
        found = {
            one["metric"]["signal"]: float(one["value"][1])
            for one in wait_for(url, "loupe_drift_psi")
        }
        assert found.keys() == {
            "predicted",
            "confidence",
            "brightness",
            "sharpness",
            "embedding_distance",
        }
        assert found["brightness"] > 0.25
        for expression in expressions():
            query(url, expression)
        Store(tmp_path / "store").promote("zoo", 2)
        wait_for(url, "sum(loupe_model_swaps_total) == 2")
        (served,) = wait_for(url, 'loupe_model_info unless on() loupe_model_info{version="1"}')
        assert (served["metric"]["name"], served["metric"]["version"]) == ("zoo", "2")
        healthy = httpx.get(
            f"{url}/api/v1/rules", timeout=ANSWER_PATIENCE_S, trust_env=False
        ).json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in healthy} <= {"ok", "unknown"}
    assert "error" not in (folder / "prometheus.log").read_text(encoding="utf-8").lower()


def test_the_settings_of_the_compose_file_exist():
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +LOUPE_([A-Z_]+):", text, re.MULTILINE))
    assert named
    assert {name.lower() for name in named} <= set(ServiceSettings.model_fields)
    for path in re.findall(r"- (\./[^:]+):", text):
        assert (DOCKER / path).exists(), path

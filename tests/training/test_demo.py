"""`make demo`: it asks before it works, tells what it sees, and cleans up after itself."""

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from models.errors import ConfigError, LoupeError
from models.store.store import Store
from training import demo
from training.data.source import Dataset, Example
from training.demo import Reply

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def printed(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(
        demo, "CONSOLE", Console(file=stream, width=200, highlight=False, soft_wrap=True)
    )
    return stream


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_taken_port_is_told_before_any_training(taken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "train", lambda *arguments: pytest.fail("training began"))
    with pytest.raises(
        ConfigError,
        match=(
            rf"^port {taken} is taken: Address already in use\. Choose another, such as `make demo"
            rf" PORT={taken + 1}`$"
        ),
    ):
        CliRunner().invoke(demo.demo, ["--port", str(taken)], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cached", [False, True])
def test_pretrained_weights_are_used_where_they_lie_at_hand(monkeypatch, cached):
    monkeypatch.setattr(demo, "cached", lambda name: cached)
    assert demo._config().weights == ("default" if cached else "none")


def replies(wrong):
    dataset = Dataset("digits", ("0", "1"), {})
    examples = [Example(name=f"digit-{index:04d}.png", label=index % 2) for index in range(40)]
    answered = [example.label ^ (index in wrong) for index, example in enumerate(examples)]
    said = [
        Reply(example, str(label), 0.9, milliseconds=1.0 + index)
        for index, (example, label) in enumerate(zip(examples, answered, strict=True))
    ]
    return said, dataset


@pytest.mark.parametrize(
    ("wrong", "shown_wrong"), [(set(), 0), ({7, 30}, 2), ({1, 2, 3, 4, 5}, 3), (set(range(40)), 3)]
)
def test_the_table_shows_wrong_answers_first_and_the_share_that_is_right(
    printed, wrong, shown_wrong
):
    assert demo._show(*replies(wrong)) == (40 - len(wrong)) / 40
    lines = printed.getvalue().splitlines()
    rows = [line for line in lines if "digit-" in line]
    assert sum("wrong" in row for row in rows) == shown_wrong
    assert all("wrong" in row for row in rows[:shown_wrong])
    assert len(rows) <= 10
    assert (
        f"{40 - len(wrong)} of 40 right over HTTP ({(40 - len(wrong)) / 40:.2%}), median 21.0 ms,"
        " one at a time" in lines[-1]
    )


def test_the_places_to_look_are_real(printed, tmp_path):
    (tmp_path / "golden").mkdir()
    for name in ("1.png", "0.png"):
        (tmp_path / "golden" / name).write_bytes(b"")
    demo._say_where_to_look("http://127.0.0.1:3000", tmp_path)
    text = printed.getvalue()
    assert (
        f"curl --data-binary @{tmp_path / 'golden/0.png'} http://127.0.0.1:3000/v1/classify" in text
    )
    assert str(tmp_path / "report.html") in text


def test_a_service_that_ends_is_reported_with_its_last_words(tmp_path):
    log = tmp_path / "service.log"
    log.write_text("\n".join(f"line {number}" for number in range(40)) + "\nno model\n")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    with pytest.raises(
        LoupeError,
        match=(
            r"(?s)^the service ended with status 3; .*service\.log says why:\nline 26\n.*\nno"
            r" model$"
        ),
    ):
        demo._wait_until_ready(f"http://127.0.0.1:{free_port()}", process, log)


def test_a_service_that_is_never_ready_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "READY_WITHIN_S", 0.2)
    (tmp_path / "log").write_text("loading\n")
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        with pytest.raises(
            LoupeError,
            match=r"(?s)^the service was not ready within 0 s; .*log says why:\nloading$",
        ):
            demo._wait_until_ready(f"http://127.0.0.1:{free_port()}", process, tmp_path / "log")
    finally:
        process.kill()
        process.wait()


IGNORES_SIGTERM = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True);"
    " signal.pause()"
)


@pytest.mark.parametrize(
    ("code", "ended_by"),
    [
        ("import signal; print('up', flush=True); signal.pause()", "SIGTERM"),
        (IGNORES_SIGTERM, "SIGKILL"),
    ],
)
def test_the_service_is_stopped_even_if_it_will_not(monkeypatch, code, ended_by):
    monkeypatch.setattr(demo, "STOPS_WITHIN_S", 0.3)
    before = signal.getsignal(signal.SIGINT)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        process.stdout.readline()
        demo._stop(process)
    assert process.returncode == -signal.Signals[ended_by]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failure_while_the_service_runs_still_stops_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    stopped = []
    monkeypatch.setattr(demo, "_stop", stopped.append)
    monkeypatch.setattr(demo, "_wait_until_ready", lambda *arguments: None)
    monkeypatch.setattr(demo.subprocess, "Popen", lambda *arguments, **options: "process")
    with pytest.raises(LoupeError, match="answered badly"), demo._service(3000, Store(tmp_path)):
        raise LoupeError("answered badly")
    assert stopped == ["process"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_goes_the_whole_way(tmp_path):
    """Train, export, publish, serve, classify over HTTP, stop: exit status 0 is the demo's own
    judgement of the accuracy over HTTP.
    """
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "LOUPE_STORE": str(tmp_path / "store"),
    }
    command = [sys.executable, "-m", "loupe", "demo", "--port", str(port), "--check"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right over HTTP" in done.stdout
    assert Store(tmp_path / "store").resolve("digits").version == 1
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0

"""A real server for one drill, clients that ask without a pause, and what can be seen of both."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

PATIENCE_S = 90.0
CLIENTS = 3


class Server:
    """`loupe serve` with its own temporary folder and log."""

    def __init__(self, folder: Path, *, store: Path, prefix: tuple[str, ...] = (), **settings: Any):
        folder.mkdir(parents=True, exist_ok=True)
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.log_file = folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        given = {"store": store, "port": self.port, "workers": 2, "drain_timeout_s": 3, **settings}
        environment = os.environ | {
            "TMPDIR": str(self.temporary),
            **{f"LOUPE_{name.upper()}": str(value) for name, value in given.items()},
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "loupe", "serve"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def family(self) -> list[psutil.Process]:
        """The supervisor and the workers."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """The workers."""
        return self.family()[1:]

    def lines(self) -> list[dict[str, Any]]:
        """The log. Raises `ValueError` for a line that is not JSON."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        return [json.loads(line) for line in text.splitlines()]

    def said(self, part: str) -> list[str]:
        """The messages of the log with *part*."""
        return [line["message"] for line in self.lines() if part in line["message"]]

    def metric(self, name: str) -> float:
        """The value of one series, such as `loupe_workers{state="ready"}`; 0 without an answer."""
        try:
            text = httpx.get(f"{self.url}/metrics", timeout=5.0, trust_env=False).text
        except httpx.TransportError:
            return 0.0
        found = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def wait_ready(self, workers: int = 2) -> float:
        """Seconds until so many workers were ready."""
        return wait(lambda: self.metric('loupe_workers{state="ready"}') == workers)

    def left(self) -> list[str]:
        """What is in its temporary folder."""
        return [path.name for path in self.temporary.iterdir()]

    def end(self) -> None:
        """Kill what is left."""
        for process in self.family():
            process.kill()
        self.process.wait()


def wait(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Seconds until *condition* was true. Raises `TimeoutError`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience_s:
            raise TimeoutError(f"not within {patience_s:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


def gone(processes: list[psutil.Process], patience_s: float = PATIENCE_S) -> float:
    """Seconds until none of *processes* ran any more."""

    def runs(one: psutil.Process) -> bool:
        try:
            return bool(one.is_running() and one.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    return wait(lambda: not any(runs(one) for one in processes), patience_s)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Server]:
    """A server with both workers ready, killed at the end."""
    server = Server(folder, **options)
    try:
        server.wait_ready()
        yield server
    finally:
        for process in server.workers():
            process.send_signal(signal.SIGCONT)
        server.end()


class Load:
    """Clients that send *photo* without a pause, and what became of their requests."""

    def __init__(self, url: str, photo: bytes, *, label: str) -> None:
        self._url, self._photo, self._label = url, photo, label
        self.outcomes: Counter[str] = Counter()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait(lambda: self.outcomes["answered"] > CLIENTS)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30.0, trust_env=False) as client:
            while not self._done.is_set():
                outcome = self._outcome(client)
                self.outcomes[outcome] += 1
                if outcome != "answered":
                    time.sleep(0.05)

    def _outcome(self, client: httpx.Client) -> str:
        try:
            answer = client.post("/v1/classify", content=self._photo)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return "not connected"
        except httpx.ReadTimeout:
            return "no answer in 30 s"
        except httpx.TransportError:
            return "lost"
        if answer.status_code != httpx.codes.OK:
            return f"status {answer.status_code}"
        right = answer.json()["predictions"][0]["label"] == self._label
        return "answered" if right else "wrong"

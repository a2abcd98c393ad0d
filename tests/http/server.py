"""A real `loupe serve` on loopback: started, asked until it is ready, stopped with SIGTERM, and
never left behind.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from service.server.launch import SERVICE, WORKER

WORKER_OF_BENTOML = "_bentoml_impl.worker.service"
"""What `bentoml serve` starts in place of `WORKER`."""
START_PATIENCE_S = 60.0
STOP_PATIENCE_S = 40.0
ANSWER_PATIENCE_S = 30.0
"""Bounds of waits. Reached only by a test that fails."""
POLL_S = 0.02


@dataclass
class Server:
    """A server process and its workers."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path
    ready_s: float = 0.0
    """Time from the start of the process until /readyz said 200."""

    @property
    def url(self) -> str:
        """Base of all addresses."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """All that the server wrote so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def workers(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        return [
            child
            for child in self.family()[1:]
            if {WORKER, WORKER_OF_BENTOML} & set(child.cmdline())
        ]

    def connect(self) -> socket.socket:
        """A connection, for requests that no client library would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_PATIENCE_S)

    def ask_raw(self, request: bytes) -> bytes:
        """All that comes back for *request* until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def stop(self) -> int:
        """Exit status after SIGTERM. Every process of the server is gone then, or this raises."""
        family = self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(family)

    def wait(self, family: list[psutil.Process]) -> int:
        """Exit status of a server that was told to stop, once every process of *family* is gone, or
        this raises.
        """
        status = self.process.wait(STOP_PATIENCE_S)
        _, left = psutil.wait_procs(family, timeout=STOP_PATIENCE_S)
        assert left == [], f"processes left behind: {left}"
        return status

    def reap(self) -> None:
        """Kill what is still there."""
        for process in self.family():
            process.kill()
        self.process.wait(STOP_PATIENCE_S)

    def wait_ready(self, workers: int) -> None:
        """Return once /readyz says 200, and as many *workers* have said in the log that they are
        ready.
        """
        started = time.monotonic()
        self._wait_until(lambda: _says_200(self.url, "/readyz"), "/readyz does not say 200")
        self.ready_s = time.monotonic() - started
        self._wait_until(
            lambda: self.log.count(" ready: ") == workers, f"not all of {workers} workers are ready"
        )

    def wait_logged(self, text: str) -> None:
        """Return once *text* stands in the log."""
        self._wait_until(lambda: text in self.log, f"the log does not say {text!r}")

    def wait_alive(self) -> None:
        """Return once /livez says 200."""
        self._wait_until(lambda: _says_200(self.url, "/livez"), "/livez does not say 200")

    def _wait_until(self, condition: Callable[[], bool], complaint: str) -> None:
        started = time.monotonic()
        while not condition():
            assert self.process.poll() is None, (
                f"the server ended with status {self.process.returncode}:\n{self.log}"
            )
            assert time.monotonic() - started < START_PATIENCE_S, f"{complaint}:\n{self.log}"
            time.sleep(POLL_S)

    def family(self) -> list[psutil.Process]:
        """The server's process and all below it. To be asked before it is told to stop."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def serving(
    folder: Path,
    *,
    store: Path,
    workers: int = 1,
    ready: bool = True,
    open_files: int = 0,
    by_bentoml: bool = False,
    **settings: object,
) -> Iterator[Server]:
    """`loupe serve` in *folder*, with *settings* by their names; stopped at the end if it still
    runs. With *ready*, once all its workers are.

    *open_files* is its hard limit of open files; 0: that of this process. *by_bentoml*: started by
    `bentoml serve`.
    """
    port = free_port()
    command = loupe("serve", "--port", port, "--store", store, "--workers", workers)
    if by_bentoml:
        command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--port", str(port)]
        settings |= {"store": store, "workers": workers}
    if open_files:
        command = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
    log_file = folder / "server.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(folder, **settings),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, log_file)
    try:
        if ready:
            server.wait_ready(workers)
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        if process.poll() is None:
            server.reap()


def refused(folder: Path, *options: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """`loupe serve` that is expected to end by itself."""
    command = loupe("serve", *options)
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        timeout=START_PATIENCE_S,
        check=False,
    )


def loupe(*arguments: object) -> list[str]:
    """The command line of `loupe`, in this interpreter."""
    return [sys.executable, "-m", "loupe", *map(str, arguments)]


def environment(folder: Path, **settings: object) -> dict[str, str]:
    """This process's environment without its settings of Loupe, with *settings*, and with *folder*
    for temporary files.
    """
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("LOUPE_", "BENTOML_", "PROMETHEUS_"))
    }
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    # Lines for people: what tests wait for in the log reads as the operator's own terminal does.
    return (
        ours
        | {"TMPDIR": str(temporary), "LOUPE_LOG_FORMAT": "text"}
        | {f"LOUPE_{name.upper()}": str(value) for name, value in settings.items()}
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes *connection*."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_one(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer on *connection*, which stays open.

    What comes behind it in the same packet is lost.
    """
    (answer,) = read_several(connection, 1)
    return answer


def read_several(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Status and body of the next *count* answers on *connection*, which stays open."""
    answers = []
    with connection.makefile("rb") as stream:
        for _ in range(count):
            _, status, *_ = stream.readline().split()
            headers = http.client.parse_headers(stream)
            answers.append((int(status), stream.read(int(headers["content-length"]))))
    return answers


def _says_200(url: str, probe: str) -> bool:
    try:
        return (
            httpx.get(f"{url}{probe}", timeout=ANSWER_PATIENCE_S, trust_env=False).status_code
            == httpx.codes.OK
        )
    except httpx.TransportError:
        return False

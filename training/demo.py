"""`make demo`: train, export, publish, serve and classify in two minutes.

The data set ships inside scikit-learn. The service runs in a process of its own, and the demo sends
requests to it over HTTP as any client does: `training` never imports `service`.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median_high
from typing import NamedTuple

import click
import httpx
from rich.console import Console
from rich.table import Table

from models.errors import ConfigError, LoupeError
from models.networks.weights import cached
from models.settings import load_store_settings
from models.store.store import Store
from training.config import TrainConfig
from training.data.source import Dataset, Example, load_dataset
from training.export.export import export
from training.fit.loop import train
from training.progress import steps
from training.recipes import recipe

NAME = "digits"
HOST = "127.0.0.1"
MIN_ACCURACY = 0.97
READY_WITHIN_S = 60.0
STOPS_WITHIN_S = 40.0
SHOWN, SHOWN_WRONG = 10, 3
CONSOLE = Console(highlight=False, soft_wrap=True, emoji=False)


class Reply(NamedTuple):
    """What the service answered for one image."""

    example: Example
    label: str
    probability: float
    milliseconds: float
    """From sending the request to having the answer."""


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=3000,
    show_default=True,
    help="TCP port of the service.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Stop the service and exit by the result, instead of leaving it up.",
)
def demo(port: int, check: bool) -> None:
    """Train on handwritten digits, export, publish, serve and classify over HTTP."""
    # Before two minutes of training and not after.
    _require_free(port)
    dataset = load_dataset("digits")
    store = Store(load_store_settings().store)
    started = time.perf_counter()
    CONSOLE.print("\n[bold]1. Train[/]")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = train(_config(), dataset, Path("artifacts/runs") / f"demo-{stamp}")
    CONSOLE.print("\n[bold]2. Export to ONNX, compare with torch, evaluate on held-out images[/]")
    package = Path("artifacts/packages") / f"demo-{stamp}"
    manifest = export(run, package)
    top1 = manifest.evaluation.metrics["top1"]
    CONSOLE.print(
        f"accuracy {top1.value:.2%} ({top1.low:.2%} to {top1.high:.2%}) on"
        f" {manifest.evaluation.count} held-out images; largest difference from torch"
        f" {manifest.parity.max_probability_difference:.1e}"
    )
    CONSOLE.print("\n[bold]3. Publish[/]")
    ref = store.publish(package, name=NAME, why="demo")
    store.promote(NAME, ref.version, why="demo")
    CONSOLE.print(f"{ref} is in production: {ref.path}")
    CONSOLE.print("\n[bold]4. Serve, and classify the held-out images over HTTP[/]")
    with _service(port, store) as base_url:
        replies = list(_classify(base_url, dataset.splits[dataset.held_out]))
        accuracy = _show(replies, dataset)
        _say_where_to_look(base_url, ref.path)
        CONSOLE.print(f"\nDone in {time.perf_counter() - started:.0f} s.")
        if not check:
            CONSOLE.print("The service stays up until Ctrl-C.")
            with suppress(KeyboardInterrupt):
                signal.pause()
            CONSOLE.print("\nstopping the service")
    if accuracy < MIN_ACCURACY:
        raise LoupeError(
            f"only {accuracy:.2%} of the held-out images were answered right over HTTP;"
            f" {MIN_ACCURACY:.0%} is expected"
        )


def _config() -> TrainConfig:
    """The digits recipe, from pretrained weights if this machine has them.

    The demo must not depend on a download.
    """
    config = recipe("digits")
    return dataclasses.replace(config, weights="default") if cached(config.network) else config


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken: {error.strerror}. Choose another, such as `make demo"
                f" PORT={port + 1}`"
            ) from error


@contextmanager
def _service(port: int, store: Store) -> Iterator[str]:
    """The base address of a service that is ready; it is stopped at the end, however that comes."""
    # -P: a folder `models` in the working directory is somebody else's.
    command = [
        sys.executable,
        "-P",
        "-m",
        "loupe",
        "serve",
        "--model",
        NAME,
        "--host",
        HOST,
        "--port",
        str(port),
        "--store",
        str(store.root),
    ]
    log = Path("artifacts/demo-service.log")
    with log.open("w", encoding="utf-8") as stream:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the service in
        # order.
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            base_url = f"http://{HOST}:{port}"
            _wait_until_ready(base_url, process, log)
            yield base_url
        finally:
            _stop(process)


def _wait_until_ready(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    started = time.monotonic()
    while (waited_s := time.monotonic() - started) < READY_WITHIN_S and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{base_url}/readyz", timeout=1.0).is_success:
                CONSOLE.print(f"ready after {waited_s:.1f} s")
                return
        time.sleep(0.05)
    problem = (
        f"was not ready within {READY_WITHIN_S:.0f} s"
        if process.poll() is None
        else f"ended with status {process.returncode}"
    )
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise LoupeError(f"the service {problem}; {log} says why:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, which drains. A second Ctrl-C meanwhile must not leave the service behind."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.terminate()
        process.wait(STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)


def _classify(base_url: str, examples: Sequence[Example]) -> Iterator[Reply]:
    with httpx.Client(base_url=base_url, timeout=10.0) as client:
        for example in steps(examples, total=len(examples), title="classify over HTTP", images=1):
            started = time.perf_counter()
            response = client.post(
                "/v1/classify",
                params={"top_k": 1},
                content=example.read(),
                headers={"Content-Type": "image/png"},
            )
            milliseconds = 1000.0 * (time.perf_counter() - started)
            if not response.is_success:
                raise LoupeError(
                    f"the service answered {example.name} with {response.status_code}:"
                    f" {response.text}"
                )
            best = response.json()["predictions"][0]
            yield Reply(example, best["label"], best["probability"], milliseconds)


def _show(replies: Sequence[Reply], dataset: Dataset) -> float:
    """Print a table of a few replies, wrong ones first; the share of all replies that are right."""
    answers = [(dataset.labels[reply.example.label], reply) for reply in replies]
    answers.sort(key=lambda answer: (answer[0] == answer[1].label, answer[1].example.name))
    wrong = [answer for answer in answers if answer[0] != answer[1].label]
    right = answers[len(wrong) :]
    table = Table("image", "truth", "answer", "probability", "milliseconds")
    for truth, (example, label, probability, milliseconds) in (
        wrong[:SHOWN_WRONG] + right[:: max(1, len(replies) // SHOWN)]
    )[:SHOWN]:
        mark = "" if label == truth else "  [red]wrong[/]"
        table.add_row(
            example.name, truth, f"{label}{mark}", f"{probability:.4f}", f"{milliseconds:.1f}"
        )
    CONSOLE.print(table)
    accuracy = len(right) / len(replies)
    median_ms = median_high(reply.milliseconds for reply in replies)
    CONSOLE.print(
        f"{len(right)} of {len(replies)} right over HTTP ({accuracy:.2%}), median"
        f" {median_ms:.1f} ms, one at a time"
    )
    return accuracy


def _say_where_to_look(base_url: str, package: Path) -> None:
    golden = min((package / "golden").glob("*.png"))
    CONSOLE.print("\n[bold]Look:[/]")
    for what, where in (
        ("a page to drop an image on", base_url),
        ("metrics", f"{base_url}/metrics"),
        ("the model", f"{base_url}/v1/models/{NAME}"),
        ("the evaluation report", str(package / "report.html")),
        ("ask it yourself", f"curl --data-binary @{golden} {base_url}/v1/classify"),
    ):
        CONSOLE.print(f"  {what:<28}{where}", soft_wrap=True)

"""`loupe serve`: refuses what cannot be served, then supervises the workers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from models.errors import ConfigError, LoupeError
from models.package.verify import verify_package
from models.store.store import Store
from service.gate.keys import read_keys
from service.http.body.fetching import parse_hosts
from service.observe.logs import start_log
from service.observe.worker_board import WorkerBoard
from service.rollout.aliases import selected_models
from service.server.home import private_home
from service.server.supervisor import Supervisor
from service.settings import (
    ServiceSettings,
    apply_options,
    prepare_environment,
    service_settings,
)

SERVICE = "service.server.bento:Loupe"
WORKER = "service.server.process"
BACKLOG = 2048
"""Connections that wait to be accepted. The kernel has a limit of its own, net.core.somaxconn."""

log = logging.getLogger("loupe")


def run_server(options: Mapping[str, str]) -> int:
    """Exit status after SIGINT or SIGTERM, once every worker has ended.

    *options* are settings by name, as text. They win over the environment.

    Raises `ConfigError` for a setting or port that cannot be used, `StoreError`, `UnknownModel` or
    `PackageError` for the model. Without a terminal, the reason is a line of the log instead.
    """
    apply_options(options)
    settings = service_settings()
    start_log(style=settings.log_format)
    try:
        return _serve(settings)
    except LoupeError as error:
        if settings.log_format == "text" or sys.stderr.isatty():
            raise
        log.error("the server does not start: %s", error)  # noqa: TRY400 - a traceback would bury it
        return 1


def _serve(settings: ServiceSettings) -> int:
    check_settings(settings)
    tls = _tls_options(settings) if settings.tls_certificate else []
    with bound_socket(settings.host, settings.port) as port, private_home() as home:
        prepare_environment(home.path)
        board = WorkerBoard.make(settings.workers)
        # For the workers. What else they print comes here, and becomes lines of the log.
        log_file = os.dup(2)
        fixed = [
            *(f"--supervisor={os.getpid()}", f"--board={board.descriptor}", f"--log={log_file}"),
            *(SERVICE, f"--fd={port.fileno()}", f"--backlog={BACKLOG}"),
            f"--timeout-keep-alive={settings.keep_alive_s}",
            f"--timeout-graceful-shutdown={settings.drain_timeout_s}",
            *tls,
        ]
        supervisor = Supervisor(
            lambda slot: [sys.executable, "-m", WORKER, f"--slot={slot}", *fixed],
            board=board,
            descriptors=(port.fileno(), board.descriptor, home.lock, log_file),
            drain_s=settings.drain_delay_s + settings.drain_timeout_s,
            close_port=port.close,
        )
        _announce(port, tls=bool(tls))
        return asyncio.run(supervisor.run())


def check_settings(settings: ServiceSettings) -> None:
    """Refuse here what a worker would fail at, so that the reason is the last line."""
    store = Store(settings.store)
    for selection in selected_models(settings):
        verify_package(selection.resolve(store)[selection.primary].path)
    if settings.api_keys_file:
        read_keys(Path(settings.api_keys_file))
    parse_hosts(settings.url_hosts)


def _tls_options(settings: ServiceSettings) -> list[str]:
    """A worker's options for the certificate of *settings*, once it has been loaded."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as error:
        raise ConfigError(
            f"the TLS certificate {settings.tls_certificate} with key {settings.tls_key} cannot"
            f" be used: {error}; expected two PEM files that belong together"
        ) from error
    # Python's own list. BentoML's refuses AES-GCM and offers CBC with SHA-1. TLS 1.3 has ciphers of
    # its own, which no list changes.
    ciphers = [one["name"] for one in context.get_ciphers() if one["protocol"] != "TLSv1.3"]
    files = ["--ssl-certfile", settings.tls_certificate, "--ssl-keyfile", settings.tls_key]
    return [*files, "--ssl-ciphers", ":".join(ciphers)]


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on the address, for the workers to accept from.

    Connections wait until a worker accepts them. Raises `ConfigError`.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Of a name with both, as `localhost`, the address that clients without IPv6 reach.
        family, kind, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
            bound.set_inheritable(True)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have such a name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --port or LOUPE_PORT,"
            " or stop what listens there"
        ) from error
    return bound


def _announce(port: socket.socket, *, tls: bool) -> None:
    host, number = port.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info(
        "listening on %s://%s:%d (press Ctrl-C to end)", "https" if tls else "http", shown, number
    )

"""Starts BentoML's server for `loupe serve`, after everything that can be refused has been refused."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from models.errors import ConfigError
from models.package.verify import verify_package
from models.store.store import Store
from service.gate.keys import read_keys
from service.http.body.fetching import parse_hosts
from service.rollout.aliases import selected_models
from service.settings import (
    ServiceSettings,
    apply_options,
    private_home,
    service_settings,
    spare_memory,
)

SERVICE = "service.server.bento:Loupe"


def run_server(options: Mapping[str, str]) -> None:
    """Serve until SIGINT or SIGTERM, then drain.

    *options* are settings by name, as text; they win over the environment.

    Raises `ConfigError` for a setting or port that cannot be used, `StoreError`, `UnknownModel` or
    `PackageError` for the model.
    """
    apply_options(options)
    settings = service_settings()
    _check_models(settings)
    _check_keys(settings)
    parse_hosts(settings.url_hosts)
    tls = _tls_arguments(settings)
    host, port = _free_address(settings.host, settings.port)
    with _private_home():
        spare_memory()
        # Only now: BentoML reads its folders from the environment when it is imported.
        from bentoml_cli.cli import cli as bentoml_cli

        from service.server.supervisor import supervise

        supervise()
        logging.getLogger("circus").setLevel(logging.WARNING)
        # BentoML's command line and not its functions: `Service.serve_http` cannot bound the drain.
        arguments = ["serve", SERVICE, "--host", host, "--port", str(port)]
        times = [
            "--timeout-keep-alive",
            str(settings.keep_alive_s),
            "--timeout-graceful-shutdown",
            str(settings.drain_timeout_s),
        ]
        bentoml_cli.main([*arguments, *times, *tls], standalone_mode=False)


def _check_models(settings: ServiceSettings) -> None:
    """Refuse what every worker would refuse, so that the reason is the last line on the terminal."""
    store = Store(settings.store)
    for selection in selected_models(settings):
        verify_package(selection.resolve(store)[selection.primary].path)


def _check_keys(settings: ServiceSettings) -> None:
    if settings.api_keys_file:
        read_keys(Path(settings.api_keys_file))


def _tls_arguments(settings: ServiceSettings) -> list[str]:
    """BentoML's options for the certificate of *settings*.

    It is tried out here: a worker would die of it and be started again for ever.
    """
    if not settings.tls_certificate:
        return []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as error:
        files = f"certificate {settings.tls_certificate} with key {settings.tls_key}"
        raise ConfigError(
            f"the TLS {files} cannot be used: {error}; expected two PEM files that belong together"
        ) from error
    # Those of Python's default. BentoML's own list refuses AES-GCM and offers CBC with SHA-1. TLS
    # 1.3 has ciphers of its own, which no list changes.
    ciphers = ":".join(
        cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"
    )
    return [
        "--ssl-certfile",
        settings.tls_certificate,
        "--ssl-keyfile",
        settings.tls_key,
        "--ssl-ciphers",
        ciphers,
    ]


def _free_address(host: str, port: int) -> tuple[str, int]:
    """The address and port to listen on, as numbers: BentoML takes no host name, and would not say
    which port 0 became.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            name: tuple[str, int] = probe.getsockname()[:2]
            return name
    except (OSError, TypeError) as error:  # TypeError: no host can have such a name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --port or LOUPE_PORT,"
            " or stop what listens there"
        ) from error


@contextmanager
def _private_home() -> Iterator[None]:
    """A BentoML home of this server's own: two servers that share one delete each other's metrics."""
    home = tempfile.mkdtemp(prefix="loupe-serve-")
    private_home(home)
    try:
        yield
    finally:
        shutil.rmtree(home, ignore_errors=True)

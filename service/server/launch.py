"""`loupe serve`: refuses what cannot be served, then starts BentoML's server."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path

from models.errors import ConfigError
from models.package.verify import verify_package
from models.store.store import Store
from service.gate.keys import read_keys
from service.http.body.fetching import parse_hosts
from service.rollout.aliases import selected_models
from service.settings import (
    HOME_PREFIX,
    ServiceSettings,
    apply_options,
    prepare_environment,
    service_settings,
)

SERVICE = "service.server.bento:Loupe"


def run_server(options: Mapping[str, str]) -> None:
    """Serve until SIGINT or SIGTERM, then drain.

    *options* are settings by name, as text. They win over the environment.

    Raises `ConfigError` for a setting or port that cannot be used, `StoreError`, `UnknownModel` or
    `PackageError` for the model.
    """
    apply_options(options)
    settings = service_settings()
    # Checked here, so that the reason is the last line on the terminal. A worker that failed at it
    # would be started again forever.
    store = Store(settings.store)
    for selection in selected_models(settings):
        verify_package(selection.resolve(store)[selection.primary].path)
    if settings.api_keys_file:
        read_keys(Path(settings.api_keys_file))
    parse_hosts(settings.url_hosts)
    tls = _tls_arguments(settings) if settings.tls_certificate else []
    host, port = _free_address(settings.host, settings.port)
    # Two servers that share a BentoML home delete each other's metrics.
    home = tempfile.mkdtemp(prefix=HOME_PREFIX)
    try:
        prepare_environment(home)
        # Not earlier: BentoML reads its folders from the environment when it is imported.
        from bentoml_cli.cli import cli as bentoml_cli

        from service.server.patches import supervise

        supervise()
        logging.getLogger("circus").setLevel(logging.WARNING)
        # BentoML's command line, because `Service.serve_http` cannot bound the drain.
        address = ["--host", host, "--port", str(port)]
        times = [
            f"--timeout-keep-alive={settings.keep_alive_s}",
            f"--timeout-graceful-shutdown={settings.drain_timeout_s}",
        ]
        bentoml_cli.main(["serve", SERVICE, *address, *times, *tls], standalone_mode=False)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _tls_arguments(settings: ServiceSettings) -> list[str]:
    """BentoML's options for the certificate of *settings*, once it has been loaded."""
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


def _free_address(host: str, port: int) -> tuple[str, int]:
    """The address and port to listen on, as numbers.

    BentoML takes no host name, and would not say which port 0 became.
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

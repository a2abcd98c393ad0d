"""Starts BentoML's server for `loupe serve`, after everything that can be refused has been refused."""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from models.errors import ConfigError
from models.package import verify_package
from models.store import Store
from service.settings import ServiceSettings, apply_options, private_home, service_settings
from service.worker import model_reference

if TYPE_CHECKING:
    from _bentoml_sdk.service import Service


def run_server(options: Mapping[str, str]) -> None:
    """Serve until SIGINT or SIGTERM, then drain. *options* are settings by name, as text; they win over the environment.

    Raises `ConfigError` for a setting or port that cannot be used, `StoreError`, `UnknownModel` or `PackageError` for the model.
    """
    apply_options(options)
    settings = service_settings()
    _check_model(settings)
    _check_port(settings.host, settings.port)
    with _private_home():
        # Only now: BentoML and prometheus_client read their folders from the environment when they are imported.
        from service.bento import Loupe

        logging.getLogger("circus").setLevel(logging.WARNING)
        # BentoML's decorators return its Service, though their types say the class.
        cast("Service[Any]", Loupe).serve_http(host=settings.host, port=settings.port, timeout_graceful_shutdown=settings.drain_timeout_s)


def _check_model(settings: ServiceSettings) -> None:
    """Refuse here what every worker would refuse, so that the reason is the last line on the terminal."""
    ref = Store(settings.store).resolve(model_reference(settings))
    verify_package(ref.path)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port or LOUPE_PORT, or stop what listens there"
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

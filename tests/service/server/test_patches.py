"""What Loupe relies on in the private parts of other libraries.

If a test here fails after an upgrade, see `service/server/patches.py`. Its tests with real
processes are in tests/http: test_lifecycle.py, test_sockets.py and test_reload.py.
"""

import ast
import inspect
from pathlib import Path

import bentoml
import httptools
import pytest
import uvicorn

import service
from service.server import patches
from service.server.connection import Connection, Loop, bound_connections

PACKAGES = Path(bentoml.__file__).parents[1]
LIBRARIES = {"bentoml", "circus", "uvicorn", "starlette", "prometheus_client"}


def private(name: str) -> bool:
    """Whether *name* is a private part of one of the libraries."""
    top, *rest = name.split(".")
    return top in LIBRARIES and (
        any(part.startswith("_") and not part.startswith("__") for part in rest)
        or name.startswith(("uvicorn.protocols", "prometheus_client.mmap_dict"))
    )


def imported(path: Path) -> set[str]:
    """The full names of what the module *path* imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    return plain | {
        f"{node.module}.{one.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for one in node.names
    }


def test_no_other_module_imports_private_parts():
    modules = list(Path(service.__file__).parent.rglob("*.py"))
    assert len(modules) >= 80
    found = {path.name for path in modules if any(map(private, imported(path)))}
    assert found == {"patches.py"}


def test_uvicorn_has_the_protocol_that_connection_extends():
    protocol = patches.HttpToolsProtocol
    members = (
        "_unset_keepalive_if_required",
        "timeout_keep_alive_handler",
        "connection_made",
        "connection_lost",
        "data_received",
        "on_headers_complete",
        "on_response_complete",
    )
    assert [name for name in members if not hasattr(protocol, name)] == []
    source = inspect.getsource(protocol)
    attributes = ("cycle", "parser", "url", "headers", "transport", "timeout_keep_alive")
    assert [name for name in attributes if f"self.{name}" not in source] == []
    assert patches.STATUS_LINE[408].startswith(b"HTTP/1.1 408 ")


def test_httptools_raises_what_connection_catches():
    assert issubclass(httptools.HttpParserCallbackError, httptools.HttpParserError)
    assert issubclass(httptools.HttpParserInvalidURLError, httptools.HttpParserError)


def test_uvicorn_looks_up_protocol_and_loop_in_its_tables(monkeypatch: pytest.MonkeyPatch):
    for table in ("HTTP_PROTOCOLS", "LOOP_FACTORIES"):
        monkeypatch.setattr(uvicorn.config, table, dict(getattr(uvicorn.config, table)))
    bound_connections()
    config = uvicorn.Config(app="unused:app")
    config.load_app = lambda: None
    config.load()
    assert config.http_protocol_class.func is Connection
    assert config.get_loop_factory() is Loop


def test_bentoml_has_the_worker_that_our_supervisor_starts():
    """Its options, in the source, because the package configures logging when it is imported."""
    worker = PACKAGES / "_bentoml_impl" / "worker" / "service.py"
    source = worker.read_text(encoding="utf-8")
    options = ("fd", "backlog", "timeout-keep-alive", "timeout-graceful-shutdown")
    tls = ("ssl-certfile", "ssl-keyfile", "ssl-ciphers")
    assert [name for name in options + tls if f'"--{name}"' not in source] == []
    assert "@click.command()\n" in source
    assert "timeout_graceful_shutdown=timeout_graceful_shutdown," in source


def test_bentoml_mounts_one_application_at_the_root():
    """`to_asgi` and `mount_apps`, in the source, because the package cannot be imported here."""
    factory = (PACKAGES / "_bentoml_sdk" / "service" / "factory.py").read_text(encoding="utf-8")
    assert "def to_asgi(" in factory
    assert "mount_apps: list[tuple[ext.ASGIApp, str, str]]" in factory


def test_bentoml_ships_swagger_ui():
    files = {path.name for path in patches.swagger_folder().iterdir()}
    assert {"swagger-ui.css", "swagger-ui-bundle.js"} <= files

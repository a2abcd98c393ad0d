"""What Loupe relies on in the private parts of other libraries.

If a test here fails after an upgrade, see `service/server/patches.py`. Its tests with real
processes are in tests/http: test_lifecycle.py, test_sockets.py and test_reload.py.
"""

import ast
import inspect
from pathlib import Path

import httptools
import pytest
import uvicorn
from bentoml._internal.utils import circus
from circus.arbiter import Arbiter
from circus.sockets import CircusSockets

import service
from service.server import patches
from service.server.connection import Connection, Loop, bound_connections

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


def test_bentoml_makes_its_supervisor_from_a_name_that_can_be_replaced(monkeypatch):
    assert issubclass(patches.Supervisor, Arbiter)
    monkeypatch.setattr(circus, "Arbiter", circus.Arbiter)
    patches.supervise()
    made = circus.create_standalone_arbiter([], threaded=False)
    try:
        assert isinstance(made, patches.Supervisor)
        assert made.check_delay == patches.CHECK_WORKERS_S
        assert made.endpoint == patches.CONTROL["endpoint"]
    finally:
        made.ctrl.stop()


def test_circus_closes_the_sockets_that_the_supervisor_closes():
    assert "close_all" in vars(CircusSockets)
    assert "self.sockets" in inspect.getsource(Arbiter)


def test_bentoml_mounts_one_application_at_the_root():
    """`to_asgi` and `mount_apps`, in the source, because the package cannot be imported here."""
    packages = Path(circus.__file__).parents[4]
    factory = (packages / "_bentoml_sdk" / "service" / "factory.py").read_text(encoding="utf-8")
    assert "def to_asgi(" in factory
    assert "mount_apps: list[tuple[ext.ASGIApp, str, str]]" in factory


def test_bentoml_ships_swagger_ui():
    files = {path.name for path in patches.swagger_folder().iterdir()}
    assert {"swagger-ui.css", "swagger-ui-bundle.js"} <= files

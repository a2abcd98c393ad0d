"""Every use of private parts of BentoML and uvicorn.

Read this module first when one of these libraries is upgraded. Each patch names its reason and the
version it was tried with. tests/service/server/test_patches.py has one test for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bentoml
import uvicorn.config
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.server.dispatch import Dispatch
from service.settings import service_settings

# uvicorn 0.54: `service.server.connection` extends the protocol, because uvicorn limits neither the
# head of a request nor its time. It uses `cycle`, `parser`, `url`, `headers`, `transport`,
# `timeout_keep_alive`, `timeout_keep_alive_handler` and `_unset_keepalive_if_required`.
__all__ = ["STATUS_LINE", "HttpToolsProtocol"]


def set_uvicorn_defaults(*, protocol: Any, loop_factory: str) -> None:
    """Have uvicorn use *protocol*, and the loop that *loop_factory* (`module:function`) makes.

    Reason: BentoML starts uvicorn and lets nobody choose either. Both stand in tables of uvicorn,
    under the name `auto`. Tried with uvicorn 0.54.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol
    uvicorn.config.LOOP_FACTORIES["auto"] = loop_factory


def run_worker(options: Sequence[str]) -> None:
    """Run one BentoML worker in this process, with the command-line *options* of BentoML.

    Reason: BentoML's supervisor starts this module, and ours starts it in its place. Tried with
    BentoML 1.4.39.
    """
    from _bentoml_impl.worker.service import main

    main(list(options), standalone_mode=False)


class BehindDispatch:
    """For a BentoML service with one application mounted at its root: puts it behind `Dispatch`.

    Reason: BentoML's middleware costs each request a tenth of the event loop's time. Tried with
    BentoML 1.4.39, whose `mount_apps` is undocumented.
    """

    mount_apps: list[tuple[ASGIApp, str, str]]
    probes: ASGIApp

    def to_asgi(self, *args: Any, **options: Any) -> ASGIApp:
        """What uvicorn runs."""
        ((application, _, _),) = self.mount_apps
        return Dispatch(
            application=application,
            probes=self.probes,
            bentoml_app=super().to_asgi(*args, **options),  # type: ignore[misc]  # BentoML's
            root_path=service_settings().root_path,
        )


def swagger_folder() -> Path:
    """Where Swagger UI's files are. Reason: BentoML ships them. Tried with BentoML 1.4.39."""
    return Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"

"""A small reverse proxy that serves one service under a path and nothing else, as nginx, Traefik
and ingress controllers do.
"""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.http.server import ANSWER_PATIENCE_S, Server

PATIENCE_S = 30.0


class Handler(http.server.BaseHTTPRequestHandler):
    """Passes on what is asked under the prefix; the rest is somebody else's and gets 418."""

    protocol_version = "HTTP/1.1"
    port: int
    prefix: str
    strips: bool
    announces: bool

    def pass_on(self) -> None:
        """Answer as the service does."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != self.prefix and not self.path.startswith(f"{self.prefix}/"):
            self.answer(418, [], b"not Loupe's")
            return
        target = (self.path.removeprefix(self.prefix) or "/") if self.strips else self.path
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("connection", "x-forwarded-prefix")
        }
        if self.announces:
            headers["X-Forwarded-Prefix"] = self.prefix
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_PATIENCE_S)
        try:
            connection.request(self.command, target, body=body or None, headers=headers)
            answer = connection.getresponse()
            self.answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send this."""
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_HEAD = pass_on

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is for the test."""


@contextmanager
def proxied(
    server: Server, *, prefix: str, strips: bool = True, announces: bool = True
) -> Iterator[str]:
    """The origin of a proxy before *server*: it takes *prefix* from the paths, or leaves it, and
    says so in its header, or does not.
    """
    handler = type(
        "Bound",
        (Handler,),
        {"port": server.port, "prefix": prefix, "strips": strips, "announces": announces},
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join(PATIENCE_S)

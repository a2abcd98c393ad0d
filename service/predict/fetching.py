"""One photo from a URL, for the person at the terminal.

Unlike the service (`service/http/body/fetching.py`), which fetches what strangers name, this
fetches what its own user typed, from any host. Only a redirect is somebody else's word: it may not
lead into a private network. Bytes, time and redirects are bounded.
"""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from models.errors import ConfigError, UrlRefused, UrlUnreachable

if TYPE_CHECKING:
    import httpx

MOST_REDIRECTS = 5
CONNECT_S, SILENT_S, WHOLE_S = 10.0, 30.0, 120.0
"""Timeouts: to connect, between two parts of the answer, and for all of it."""


def fetch(url: str, *, max_bytes: int) -> bytes:
    """The bytes at *url*, after redirects.

    Raises `UrlRefused` for a redirect into a private network, `UrlUnreachable` if there is no
    photo to be had, `ConfigError` if httpx is not installed.
    """
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise ConfigError(
            "photos from URLs need httpx, which is not installed here: pip install"
            " 'loupe-vision[serve]'"
        ) from error
    try:
        # The user's proxies and certificates apply, as they do for a browser.
        with httpx.Client(timeout=httpx.Timeout(SILENT_S, connect=CONNECT_S)) as client:
            return _follow(client, httpx.URL(url), max_bytes=max_bytes)
    except httpx.InvalidURL as error:
        raise UrlUnreachable(f"this is not a URL: {error}") from error
    except httpx.HTTPError as error:
        raise UrlUnreachable(
            f"no photo came: {str(error) or type(error).__name__}; check the address and the"
            " connection"
        ) from error


def _follow(client: httpx.Client, url: httpx.URL, *, max_bytes: int) -> bytes:
    typed, deadline = url.host, time.monotonic() + WHOLE_S
    for _ in range(MOST_REDIRECTS + 1):
        with client.stream("GET", url, headers={"Accept": "image/*,*/*;q=0.5"}) as response:
            if response.next_request is None:
                return _body(response, max_bytes=max_bytes, deadline=deadline)
            url = response.next_request.url
        if url.host != typed:
            _require_public(url)
    raise UrlUnreachable(f"more than {MOST_REDIRECTS} redirects; give the photo's own address")


def _require_public(url: httpx.URL) -> None:
    """Raises `UrlRefused` if the host of *url* has an address that is not public."""
    from service.http.body.fetching import is_public

    try:
        found = socket.getaddrinfo(url.host, url.port or url.scheme, type=socket.SOCK_STREAM)
    except OSError:
        return  # only a proxy knows it, or the request fails by itself
    if not all(is_public(str(address[0])) for *_, address in found):
        raise UrlRefused(
            f"the address redirects to {url.host}, which is in a private network; if you mean"
            " that, give its address"
        )


def _body(response: httpx.Response, *, max_bytes: int, deadline: float) -> bytes:
    if response.status_code != HTTPStatus.OK:
        raise UrlUnreachable(
            f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
            + "; check the address"
        )
    if response.headers.get("content-type", "").startswith("text/html"):
        raise UrlUnreachable("this is a web page; give the address of the picture in it")
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > max_bytes:
            raise UrlUnreachable(f"more than {max_bytes:,} bytes came, the most for one photo")
        if time.monotonic() > deadline:
            raise UrlUnreachable(f"the photo did not come whole within {WHOLE_S:g} s")
    return bytes(content)

"""Images from https URLs, off unless hosts are allowed. Built so that nothing inside the network can be reached through it.

A host must be on the list *and* resolve to public addresses only; it is resolved once, and the connection goes to the very address that
was judged (otherwise a name server could answer differently the second time). No redirects, no credentials, no proxy, no compression,
bounded in bytes and in time. What the host answered is not told to the client, but for its status.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import httpx

from models.errors import UrlRefused, UrlUnreachable

HTTPS_PORT = 443
MAX_URL_CHARACTERS = 2048
PUBLIC_V6 = ipaddress.ip_network("2000::/3")
"""All that was ever allotted as global unicast. Mapped, NAT64 (64:ff9b::/96 and /48), unique local, link-local and multicast lie outside."""
REFUSED_V6 = tuple(map(ipaddress.ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
"""Inside it, but tunnels (Teredo, 6to4: they carry an IPv4 address of the client's choice), protocol assignments and documentation."""
REFUSED_V4 = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "192.0.0.0/24")))
"""6to4 relays and protocol assignments, some of which Python's table calls global."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""All addresses of a host and port, as text."""


def is_public(address: str) -> bool:
    """Whether *address* is one of the open internet: not private, shared (CGNAT), local, a tunnel, multicast or reserved."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.scope_id is None and ip in PUBLIC_V6 and not any(ip in network for network in REFUSED_V6)
    return not any(ip in network for network in REFUSED_V4)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """Fetches from *hosts*, each `name` or `name:port`. With none, every URL is refused.

    *resolver*, *allowed_address* and *tls* are for tests, which have no public address.
    """

    def __init__(
        self,
        hosts: frozenset[str],
        *,
        max_bytes: int,
        timeout_s: float,
        resolver: Resolve = resolve,
        allowed_address: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._allowed_address = allowed_address
        self._tls = tls

    async def fetch(self, url: str) -> bytes:
        """The bytes at *url*. Raises `UrlRefused` where it may not be asked, `UrlUnreachable` where it gave nothing that can be used."""
        target = self._checked(url)
        port = target.port or HTTPS_PORT
        try:
            async with asyncio.timeout(self._timeout_s):
                address = await self._pinned(target.host, port)
                return await self._get(target, address)
        except TimeoutError as error:
            raise UrlUnreachable(f"{target.host} did not send the image within {self._timeout_s:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise UrlUnreachable(f"{target.host} could not be asked: {type(error).__name__}") from error

    def _checked(self, url: str) -> httpx.URL:
        if not self._hosts:
            raise UrlRefused("this service fetches no URLs; send the image itself, or set LOUPE_URL_HOSTS to the hosts that may be asked")
        if len(url) > MAX_URL_CHARACTERS:
            raise UrlRefused(f"the URL has {len(url)} characters; at most {MAX_URL_CHARACTERS} are taken")
        try:
            target = httpx.URL(url)
            host = target.host
        except (httpx.InvalidURL, ValueError) as error:
            raise UrlRefused(f"{url[:80]!r} is no URL") from error
        if target.scheme != "https":
            raise UrlRefused(f"the URL begins with {target.scheme[:20]!r}; expected https")
        if target.userinfo:
            raise UrlRefused("the URL carries a user name or password; such URLs are not fetched")
        allowed = host if target.port in (None, HTTPS_PORT) else f"{host}:{target.port}"
        if allowed.lower() not in self._hosts:
            raise UrlRefused(f"host {allowed[:80]!r} is not one that images may be fetched from")
        return target

    async def _pinned(self, host: str, port: int) -> str:
        """The address to connect to. One that is not public condemns the host, whatever the others are."""
        try:
            addresses = await self._resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise UrlUnreachable(f"{host} has no address") from error
        if not addresses:
            raise UrlUnreachable(f"{host} has no address")
        if not all(map(self._allowed_address, addresses)):
            raise UrlRefused(f"{host} has an address that is not public")
        return addresses[0]

    async def _get(self, target: httpx.URL, address: str) -> bytes:
        # The name goes into the Host header and the TLS handshake, so the certificate is checked against it; the connection to the address.
        headers = {"Host": target.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "loupe"}
        request_url = target.copy_with(host=address, fragment=None)
        verify = self._tls or True
        async with (
            httpx.AsyncClient(verify=verify, trust_env=False, follow_redirects=False, timeout=self._timeout_s) as client,
            client.stream("GET", request_url, headers=headers, extensions={"sni_hostname": target.host}) as response,
        ):
            if response.status_code != HTTPStatus.OK:
                raise UrlUnreachable(f"{target.host} answered with status {response.status_code}; expected 200, redirects are not followed")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise UrlUnreachable(f"{target.host} sent the image compressed, although it was asked not to")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > self._max_bytes:
                    raise UrlUnreachable(f"{target.host} sent more than {self._max_bytes:,} bytes, the most for one image")
            return bytes(content)


def parse_hosts(text: str) -> frozenset[str]:
    """The hosts of the setting `url_hosts`: `name` or `name:port`, with commas between them."""
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())

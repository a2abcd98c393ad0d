"""Images from https URLs. Off unless the setting `url_hosts` lists hosts.

Nobody can reach the inside of a network through it. A host must be on the list *and* resolve only
to public addresses. It is resolved once, and the connection goes to the checked address, because a
name server could answer differently the second time. There are no redirects, no credentials, no
proxy and no compression; bytes and time are bounded. The client learns nothing of the answer but
its status. Two URLs share only the TLS context: an open connection was checked for another name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import httpx

from models.errors import ConfigError, DeadlineExceeded, UrlRefused, UrlUnreachable

HTTPS_PORT = 443
MAX_URL_CHARACTERS = 2048
PUBLIC_V6 = ipaddress.ip_network("2000::/3")
"""Global unicast. Mapped, NAT64, unique local, link-local and multicast addresses are outside."""
REFUSED = tuple(
    map(
        ipaddress.ip_network,
        (
            # In PUBLIC_V6, but tunnels (Teredo, 6to4) to an IPv4 address of the client's choice,
            # protocol assignments, and documentation.
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
            # 6to4 relays and protocol assignments. Python's table calls some of them global.
            *("192.88.99.0/24", "192.0.0.0/24"),
        ),
    )
)

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""All addresses of a host and port, as text."""
Hold = Callable[[int], None]
"""Called with the size of each piece. Raises `TooBusy` if there is no room for it."""


def is_public(address: str) -> bool:
    """Whether *address* belongs to the open internet.

    Private, shared (CGNAT), local, tunnel, multicast and reserved addresses do not.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip.scope_id or ip not in PUBLIC_V6):
        return False
    return not any(ip in network for network in REFUSED)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses from the system's resolver. Raises `OSError`."""
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
        self._making_tls = asyncio.Lock()

    async def fetch(self, url: str, *, deadline: float, hold: Hold) -> bytes:
        """The bytes at *url*, counted by *hold*.

        Raises `UrlRefused` for an address that is not allowed, `UrlUnreachable` if it gave nothing
        usable, `DeadlineExceeded` at *deadline* (by `time.monotonic`), and `TooBusy` as *hold*.
        """
        target = self._checked(url)
        left_s = deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(self._timeout_s, left_s)):
                address = await self._pinned(
                    _name(target), HTTPS_PORT if target.port is None else target.port
                )
                return await self._get(target, address, hold=hold)
        except TimeoutError as error:
            if left_s < self._timeout_s:
                raise DeadlineExceeded(
                    f"{target.host} did not send the image before the request's deadline",
                    retry_after_s=1.0,
                ) from error
            raise UrlUnreachable(
                f"{target.host} did not send the image within {self._timeout_s:g} s"
            ) from error
        except (httpx.HTTPError, OSError) as error:
            raise UrlUnreachable(
                f"{target.host} could not be asked: {type(error).__name__}"
            ) from error

    def _checked(self, url: str) -> httpx.URL:
        if not self._hosts:
            raise UrlRefused(
                "this service fetches no URLs; send the image itself, or set LOUPE_URL_HOSTS to the"
                " hosts that may be asked"
            )
        if len(url) > MAX_URL_CHARACTERS:
            raise UrlRefused(
                f"the URL has {len(url)} characters; at most {MAX_URL_CHARACTERS} are taken"
            )
        try:
            target = httpx.URL(url)
            host = target.host
        except (httpx.InvalidURL, ValueError) as error:
            raise UrlRefused(f"{url[:80]!r} is not a URL") from error
        if target.scheme != "https":
            raise UrlRefused(f"the URL begins with {target.scheme[:20]!r}; expected https")
        if target.userinfo:
            raise UrlRefused("the URL carries a user name or password; such URLs are not fetched")
        if _authority(target) not in self._hosts:
            asked = host if target.port is None else f"{host}:{target.port}"
            raise UrlRefused(f"host {asked[:80]!r} is not one that images may be fetched from")
        return target

    async def _pinned(self, host: str, port: int) -> str:
        """The address to connect to. One address that is not public refuses the host."""
        try:
            addresses = await self._resolver(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise UrlUnreachable(f"{host} has no address")
        if not all(map(self._allowed_address, addresses)):
            raise UrlRefused(f"{host} has an address that is not public")
        return addresses[0]

    async def _get(self, target: httpx.URL, address: str, *, hold: Hold) -> bytes:
        # The Host header and the TLS handshake have the name, so the certificate must match it. The
        # connection goes to the checked address.
        async with self._making_tls:
            if self._tls is None:
                # In a thread: reading the certificates of all authorities takes tens of ms.
                self._tls = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
        headers = {
            "Host": target.netloc.decode("ascii"),
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "User-Agent": "loupe",
        }
        request_url = target.copy_with(host=address, fragment=None)
        async with (
            httpx.AsyncClient(
                verify=self._tls,
                trust_env=False,
                follow_redirects=False,
                timeout=self._timeout_s,
            ) as client,
            client.stream(
                "GET", request_url, headers=headers, extensions={"sni_hostname": _name(target)}
            ) as response,
        ):
            if response.status_code != HTTPStatus.OK:
                raise UrlUnreachable(
                    f"{target.host} answered with status {response.status_code}; expected 200,"
                    " redirects are not followed"
                )
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise UrlUnreachable(
                    f"{target.host} sent the image compressed, although it was asked not to"
                )
            content = bytearray()
            async for chunk in response.aiter_raw():
                if len(content) + len(chunk) > self._max_bytes:
                    raise UrlUnreachable(
                        f"{target.host} sent more than {self._max_bytes:,} bytes, the most for one"
                        " image"
                    )
                hold(len(chunk))
                content += chunk
            return bytes(content)


def parse_hosts(text: str) -> frozenset[str]:
    """The hosts of the setting `url_hosts`: `name` or `name:port`, separated by commas.

    Raises `ConfigError`.
    """
    return frozenset(_listed(host.strip()) for host in text.split(",") if host.strip())


def _listed(host: str) -> str:
    fault = ""
    try:
        target = httpx.URL(f"https://{host}")
        more = target.fragment or target.userinfo or target.raw_path != b"/"
        if target.host and not more and b"%" not in target.raw_host:
            return _authority(target)
    except httpx.InvalidURL as error:
        fault = f" {error};"
    raise ConfigError(
        f"LOUPE_URL_HOSTS has {host[:80]!r}:{fault} expected a host or host:port, such as"
        " photos.example"
    )


def _name(target: httpx.URL) -> str:
    """The host as DNS and certificates have it: other letters in the form of IDNA."""
    return target.raw_host.decode("ascii")


def _authority(target: httpx.URL) -> str:
    """Host in small letters, and the port unless it is 443."""
    return target.netloc.decode("ascii").lower()

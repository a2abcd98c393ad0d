"""Where a request begins and ends in the bytes of a connection (RFC 9112).

A proxy before the service decides the same. If the two could disagree, part of one request would be
answered as another. So a request that can be read in two ways is refused, and `MalformedRequest`
says why. What a header line may look like is llhttp's to judge, in httptools; the tests hold it to
that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from models.errors import HeadTooLarge, MalformedRequest

MAX_HEAD_BYTES = 16 * 1024
MAX_FIELDS = 100
MAX_CHUNK_LINE_BYTES = 256

_VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
_TARGETS = (b"/", b"http://", b"https://")
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host"))
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
"""The characters of a host and port in RFC 3986."""
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;" + _VALUE + rb")?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:" + _VALUE)


def without_upgrade(head: bytes) -> bytes:
    """*head* without the field `Upgrade`.

    The service upgrades to nothing, as RFC 9110 allows. A parser that saw the field would skip the
    body.
    """
    return _UPGRADE.sub(b"", head) if b"upgrade:" in head.lower() else head


def check_request_line(target: bytes, *, version: str) -> None:
    """Raise `MalformedRequest` unless a request for *target* is one that HTTP/1.0 or 1.1 has for a
    server.
    """
    if version not in ("1.1", "1.0") or not target.lower().startswith(_TARGETS):
        raise MalformedRequest(
            f"HTTP/{version} for the target {target[:80]!r}; expected HTTP/1.1 for a path or an"
            " http address"
        )
    if b"#" in target:
        raise MalformedRequest(
            f"the target {target[:80]!r} has a fragment, which clients keep to themselves; leave"
            " out what stands behind `#`"
        )


def body_bytes(fields: Iterable[tuple[bytes, bytes]], *, version: str) -> int | None:
    """How much body follows a head with these *fields*, whose names are in small letters; None:
    chunks.

    Raises `MalformedRequest` or `HeadTooLarge`.
    """
    found: dict[bytes, bytes] = {}
    count = 0
    for name, value in fields:
        count += 1
        if name in _FRAMING:
            if name in found:
                raise MalformedRequest(f"the header has more than one {name.decode()}")
            found[name] = value
    if count > MAX_FIELDS:
        raise HeadTooLarge(f"the header has {count} fields; at most {MAX_FIELDS} are taken")
    host = found.get(b"host", b"" if version == "1.0" else None)
    if host is None or not _HOST.fullmatch(host.strip(b" \t")):
        raise MalformedRequest("HTTP/1.1 needs the field Host with a host name (RFC 9112, 3.2)")
    coding, length = found.get(b"transfer-encoding"), found.get(b"content-length")
    if coding is not None:
        if length is not None or coding.strip(b" \t").lower() != b"chunked" or version != "1.1":
            raise MalformedRequest(
                "Transfer-Encoding may only be `chunked`, under HTTP/1.1 and without Content-Length"
            )
        return None
    if length is None:
        return 0
    digits = _LENGTH.fullmatch(length.strip(b" \t"))
    if digits is None:
        raise MalformedRequest("Content-Length may only be one decimal number of at most 18 digits")
    return int(digits[0])


def check_beginning(data: bytearray, *, searched: int) -> None:
    """Raise `MalformedRequest` or `HeadTooLarge` if *data* can never become a head; its first
    *searched* bytes were checked.
    """
    if len(data) >= MAX_HEAD_BYTES:
        raise HeadTooLarge(f"the header has more than {MAX_HEAD_BYTES:,} bytes")
    if searched == 0 and not data[:1].isalpha():
        raise MalformedRequest(
            "these bytes do not begin an HTTP request; is this TLS, sent to a service without it?"
        )
    if _BARE_LINE_FEED.search(data, searched):
        raise MalformedRequest("a line of the header ends with LF alone; expected CR LF")


class Chunks:
    """A chunked body, as it comes. Extensions and trailers are bounded and dropped."""

    def __init__(self) -> None:
        self.done = False
        self._line = b""
        """The beginning of a line whose end has not come."""
        self._data_left = 0
        self._after_data = False
        self._in_trailer = False
        self._extra_bytes = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """The chunks in *data*, written plainly, and what lies behind the body.

        Raises `MalformedRequest` or `HeadTooLarge`.
        """
        data, self._line = self._line + data, b""
        plain: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._data_left:
                piece = data[at : at + self._data_left]
                self._data_left -= len(piece)
                at += len(piece)
                plain.append(piece)
                continue
            end = data.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
            if end < 0:
                if len(data) - at >= MAX_CHUNK_LINE_BYTES:
                    raise MalformedRequest(
                        f"a line between chunks has more than {MAX_CHUNK_LINE_BYTES} bytes"
                    )
                self._line = data[at:]
                break
            plain.append(self._next_line(data[at:end]))
            at = end + 2
        return b"".join(plain), data[at:] if self.done else b""

    def _next_line(self, line: bytes) -> bytes:
        """The plain form of *line*, which stands between chunks."""
        if self._in_trailer:
            return self._next_trailer(line)
        if self._after_data:
            if line:
                raise MalformedRequest("a chunk has more bytes than its size says")
            self._after_data = False
            return b"\r\n"
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise MalformedRequest(
                f"{line[:20]!r} is no size of a chunk; expected at most 8 hexadecimal digits"
            )
        self._count(len(line) - len(size[1]))
        self._data_left = int(size[1], 16)
        self._in_trailer = not self._data_left
        self._after_data = not self._in_trailer
        return b"" if self._in_trailer else b"%x\r\n" % self._data_left

    def _next_trailer(self, line: bytes) -> bytes:
        if not line:
            self.done = True
            return b"0\r\n\r\n"
        if _TRAILER.fullmatch(line) is None:
            raise MalformedRequest("a line behind the last chunk is not `Name: value`")
        self._count(len(line))
        return b""

    def _count(self, extra_bytes: int) -> None:
        self._extra_bytes += extra_bytes
        if self._extra_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge(
                "extensions of chunks and fields behind the last one have more than"
                f" {MAX_HEAD_BYTES:,} bytes"
            )

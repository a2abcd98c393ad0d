"""Where a request begins and ends in the bytes of a connection (RFC 9112).

A proxy in front of the service decides the same. If the two disagreed, part of one request would be
answered as another. So a request that can be read in two ways is refused, and `MalformedRequest`
says why. llhttp, in httptools, judges the form of header lines; the tests check that it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

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
    """*head* without the field `Upgrade`, which RFC 9110 lets a server ignore.

    A parser that saw it would skip the body.
    """
    return _UPGRADE.sub(b"", head) if b"upgrade:" in head.lower() else head


def check_request_line(target: bytes, *, version: str) -> None:
    """Raise `MalformedRequest` unless *target* is a path or address, asked by HTTP/1.0 or 1.1."""
    if version not in ("1.1", "1.0") or not target.lower().startswith(_TARGETS):
        raise MalformedRequest(
            f"HTTP/{version} for the target {target[:80]!r}; expected HTTP/1.1 for a path or an"
            " http address"
        )
    if b"#" in target:
        raise MalformedRequest(
            f"the target {target[:80]!r} has a fragment, which is not sent to servers; leave out"
            " everything from the `#`"
        )


def body_bytes(fields: Collection[tuple[bytes, bytes]], *, version: str) -> int | None:
    """How many bytes of body follow a head with *fields*, named in small letters; None: chunks.

    Raises `MalformedRequest` or `HeadTooLarge`.
    """
    if len(fields) > MAX_FIELDS:
        raise HeadTooLarge(f"the header has {len(fields)} fields; at most {MAX_FIELDS} are taken")
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in found:
            raise MalformedRequest(f"the header has more than one {name.decode()}")
        if name in _FRAMING:
            found[name] = value
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


def check_beginning(data: bytes, *, searched: int) -> None:
    """Raise `MalformedRequest` or `HeadTooLarge` if *data* can never become a head.

    Its first *searched* bytes were checked before.
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
    """A chunked body, read piece by piece. Extensions and trailers are bounded and dropped."""

    def __init__(self) -> None:
        self.done = False
        self._line = b""
        """The beginning of an incomplete line."""
        self._data_left = 0
        self._expected: Callable[[Chunks, bytes], bytes] = Chunks._size
        """Reads the next line between chunks, and gives what the parser gets for it."""
        self._extra_bytes = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """The chunks in *data* without extensions and trailers, and the bytes after the body.

        Raises `MalformedRequest` or `HeadTooLarge`.
        """
        data, self._line = self._line + data, b""
        plain: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._data_left:
                plain.append(data[at : at + self._data_left])
                at += len(plain[-1])
                self._data_left -= len(plain[-1])
                continue
            end = data.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
            if end < 0:
                if len(data) - at >= MAX_CHUNK_LINE_BYTES:
                    raise MalformedRequest(
                        f"a line between chunks has more than {MAX_CHUNK_LINE_BYTES} bytes"
                    )
                self._line, at = data[at:], len(data)
            else:
                plain.append(self._expected(self, data[at:end]))
                at = end + 2
        return b"".join(plain), data[at:]

    def _size(self, line: bytes) -> bytes:
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise MalformedRequest(
                f"{line[:20]!r} is not a chunk size; expected at most 8 hexadecimal digits"
            )
        self._count(len(line) - len(size[1]))
        self._data_left = int(size[1], 16)
        self._expected = Chunks._end_of_data if self._data_left else Chunks._trailer
        return b"%x\r\n" % self._data_left if self._data_left else b""

    def _end_of_data(self, line: bytes) -> bytes:
        if line:
            raise MalformedRequest("a chunk has more bytes than its size says")
        self._expected = Chunks._size
        return b"\r\n"

    def _trailer(self, line: bytes) -> bytes:
        self.done = not line
        if line and _TRAILER.fullmatch(line) is None:
            raise MalformedRequest("a line after the last chunk is not `Name: value`")
        self._count(len(line))
        return b"0\r\n\r\n" if self.done else b""

    def _count(self, extra_bytes: int) -> None:
        self._extra_bytes += extra_bytes
        if self._extra_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge(
                "extensions of chunks and fields after the last one have more than"
                f" {MAX_HEAD_BYTES:,} bytes"
            )

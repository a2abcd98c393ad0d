"""Where a request begins and ends in the bytes of a connection (RFC 9112).

A proxy before the service decides the same. If the two could disagree, part of one request would be
answered as another. So a request that can be read in two ways is refused, and `MalformedRequest` says why.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from models.errors import HeadTooLarge, MalformedRequest

MAX_HEAD_BYTES = 16 * 1024
MAX_FIELDS = 100
MAX_CHUNK_LINE_BYTES = 256

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
_REQUEST_LINE = re.compile(rb"([A-Z-]{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+\r\n")
_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding|host|upgrade):[ \t]*([^\r]*)", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
_TARGET = re.compile(rb"(?:https?://[^/?#]+)?(/[^?#]*).*|\*", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;" + _VALUE + rb")?")
_TRAILER = re.compile(_TOKEN + rb":" + _VALUE)


class Head(NamedTuple):
    """The head of one request, and how much body follows."""

    data: bytes
    """Without the field `Upgrade`: the service upgrades to nothing, and a parser that saw it would skip the body."""
    path: bytes
    body_bytes: int | None
    """None: the body is chunked."""


def read_head(head: bytes) -> Head:
    """What *head*, which ends with its empty line, says. Raises `MalformedRequest` or `HeadTooLarge`."""
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise MalformedRequest("the request line is not `METHOD target HTTP/1.1`, with one space between and only ASCII")
    if _FIELDS.fullmatch(head, line.end()) is None:
        raise MalformedRequest(
            "a header line is not `Name: value`: no space before the colon, no folded line, no control character, and CR LF at its end"
        )
    if head.count(b"\r\n") - 2 > MAX_FIELDS:
        raise HeadTooLarge(f"the header has more than {MAX_FIELDS} fields")
    method, target, minor = line.groups()
    split = _TARGET.fullmatch(target)
    if split is None or method == b"CONNECT":
        raise MalformedRequest("the target is no path such as /v1/classify, and no http address with a path")
    found: dict[bytes, list[bytes]] = {}
    for name, value in _FRAMING.findall(head, line.end() - 2):
        found.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    if len(found.get(b"host", ())) > 1:
        raise MalformedRequest("the header has more than one Host")
    length = _body_bytes(found.get(b"content-length", []), found.get(b"transfer-encoding", []), minor=minor)
    return Head(_UPGRADE.sub(b"", head) if b"upgrade" in found else head, split[1] or b"*", length)


def _body_bytes(lengths: list[bytes], codings: list[bytes], *, minor: bytes) -> int | None:
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked" or minor == b"0":
            raise MalformedRequest("Transfer-Encoding may only be one `chunked`, under HTTP/1.1 and without Content-Length")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise MalformedRequest("Content-Length may only be one decimal number of at most 18 digits")
    return int(lengths[0])


def check_beginning(data: bytearray, *, searched: int) -> None:
    """Raise `MalformedRequest` or `HeadTooLarge` if *data* can never become a head; its first *searched* bytes were checked."""
    if len(data) >= MAX_HEAD_BYTES:
        raise HeadTooLarge(f"the header has more than {MAX_HEAD_BYTES:,} bytes")
    if searched == 0 and not data[:1].isalpha():
        raise MalformedRequest("these bytes do not begin an HTTP request; is this TLS, sent to a service without it?")
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
        """The chunks in *data*, written plainly, and what lies behind the body. Raises `MalformedRequest` or `HeadTooLarge`."""
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
                    raise MalformedRequest(f"a line between chunks has more than {MAX_CHUNK_LINE_BYTES} bytes")
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
            raise MalformedRequest(f"{line[:20]!r} is no size of a chunk; expected at most 8 hexadecimal digits")
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
            raise HeadTooLarge(f"extensions of chunks and fields behind the last one have more than {MAX_HEAD_BYTES:,} bytes")

"""`multipart/form-data`, parsed within limits as it arrives. Nothing is written to disk."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from models.errors import BodyTooLarge, MalformedBody, TooManyImages, UnsupportedContentType

MULTIPART_TYPE = "multipart/form-data"
MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 2048
FIELDS_MAX = 16
"""Parts that a form may have besides the images."""


@dataclass(frozen=True)
class Part:
    """One part of a form."""

    name: str
    """Of the field."""
    content: bytes
    file_name: str | None
    """None: a text field, as of `curl -F image=text`. Empty: a browser's input without a file."""


class FormReader:
    """Collects the parts of a form from the pieces of its body.

    *content_type* is the request's header. Raises `UnsupportedContentType` if it has no boundary.
    """

    def __init__(self, content_type: str, *, max_images: int, max_part_bytes: int) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise UnsupportedContentType(
                f"content type {content_type[:80]!r} has no boundary; let the client library write"
                " this header"
            )
        self._max_images = max_images
        self._max_part_bytes = max_part_bytes
        self._parts: list[Part] = []
        self._headers: dict[str, str] = {}
        self._header_name = self._header_value = b""
        self._content = bytearray()
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._add_content,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
                max_header_count=MAX_PART_HEADERS,
                max_header_size=MAX_PART_HEADER_BYTES,
            )
        except FormParserError as error:
            raise MalformedBody(f"the boundary of the form cannot be used: {error}") from error

    def feed(self, chunk: bytes) -> None:
        """Take the next piece. Raises `MalformedBody`, `BodyTooLarge` or `TooManyImages`."""
        try:
            # RFC 2046 allows an epilogue after the last boundary. It means nothing.
            if not self._ended:
                self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedBody(
                f"the multipart body is damaged after {len(self._parts)} whole parts: {error}"
            ) from error

    def parts(self) -> list[Part]:
        """All parts. Raises `MalformedBody` if the closing boundary is missing."""
        if not self._ended:
            raise MalformedBody(
                f"the multipart body ends before its closing boundary, after {len(self._parts)}"
                " whole parts: send all of it"
            )
        return self._parts

    def _begin(self) -> None:
        if len(self._parts) == self._max_images + FIELDS_MAX:
            raise TooManyImages(
                f"the form has more than {len(self._parts)} parts; at most {self._max_images}"
                " images are taken in one request"
            )
        self._headers, self._content = {}, bytearray()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        name, value = self._header_name.decode("latin-1"), self._header_value.decode("latin-1")
        self._headers[name.lower()] = value
        self._header_name = self._header_value = b""

    def _field(self) -> tuple[str, str | None]:
        """Field name and file name of the current part. Raises `MalformedBody`."""
        number = len(self._parts) + 1
        given = self._headers.get("content-disposition", "")
        disposition, options = parse_options_header(given)
        if disposition != b"form-data" or b"name" not in options:
            raise MalformedBody(
                f"part {number} of the form has no header `Content-Disposition: form-data;"
                ' name="..."`'
            )
        encoding = self._headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in ("binary", "8bit", "7bit"):
            raise MalformedBody(
                f"part {number} of the form has the transfer encoding {encoding[:40]!r}; send its"
                " bytes as they are (RFC 7578, 4.7)"
            )
        # The parser ignores `filename*`, which some clients send alone.
        file_name = options.get(b"filename", b"?" if "filename*" in given.lower() else None)
        return options[b"name"].decode("utf-8", errors="replace"), (
            None if file_name is None else file_name.decode("utf-8", errors="replace")
        )

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if len(self._content) + end - start > self._max_part_bytes:
            raise BodyTooLarge(
                f"part {len(self._parts) + 1} of the form has more than {self._max_part_bytes:,}"
                " bytes, the most for one image"
            )
        self._content += data[start:end]

    def _end_part(self) -> None:
        name, file_name = self._field()
        self._parts.append(Part(name, bytes(self._content), file_name))

    def _end(self) -> None:
        self._ended = True

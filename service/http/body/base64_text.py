"""Base64 as clients write it: the decoder of every route that takes images as text."""

from __future__ import annotations

import binascii
from urllib.parse import unquote_to_bytes

DATA_URL = b"data:"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\n\v\f\r"


def decode_base64(text: str) -> bytes:
    """The bytes that *text* encodes.

    Takes both alphabets, white space and line breaks anywhere, a missing padding, and `data:` URLs.
    Raises `ValueError` that says what is wrong.
    """
    try:
        data = text.encode("ascii").strip()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is {text[error.start]!r}") from error
    if data[: len(DATA_URL)].lower() == DATA_URL:
        data = _data_of_url(data)
    data = data.translate(_URL_SAFE, _WHITE_SPACE).rstrip(b"=")
    if len(data) % 4 == 1:
        raise ValueError(f"{len(data):,} characters are one too many or too few")
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)


def _data_of_url(url: bytes) -> bytes:
    head, comma, data = url.partition(b",")
    if not comma or not head.replace(b" ", b"").lower().endswith(b";base64"):
        raise ValueError("the data URL has no `;base64,`")
    return unquote_to_bytes(data) if b"%" in data else data

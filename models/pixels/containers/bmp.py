"""BMP."""

from __future__ import annotations

import struct

from models.pixels.containers.container import ALPHA_BYTES, GREY_BYTES, Container


def read_bmp(encoded: bytes) -> Container:
    """A BMP has no metadata that Pillow would read. A negative height means rows from the top."""
    core = struct.unpack_from("<I", encoded, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if core else "<Ii", encoded, 18)
    (depth,) = struct.unpack_from("<H", encoded, 24 if core else 28)
    pixel_bytes = {24: 4, 32: ALPHA_BYTES}.get(depth, GREY_BYTES)
    return Container(stream=encoded, width=width, height=abs(height), pixel_bytes=pixel_bytes)

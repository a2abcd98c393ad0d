"""GIF, of which only the first frame is kept."""

from __future__ import annotations

import struct

from models.errors import UndecodableImage
from models.pixels.containers.container import ALPHA_BYTES, BLOCKS_MAX, Container


def read_gif(encoded: bytes) -> Container:
    """Keeps the screen, its palette, and from the first frame on.

    Source: GIF89a specification, sections 18 to 26.
    """
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    at = head = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = b""
    for _ in range(BLOCKS_MAX):
        if encoded[at] == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", encoded, at + 1)
            stream = b"".join((encoded[:head], control, encoded[at:]))
            size = max(width, left + frame_width), max(height, top + frame_height)
            return Container(stream=stream, width=size[0], height=size[1], pixel_bytes=ALPHA_BYTES)
        if encoded[at] != 0x21:
            raise UndecodableImage(
                f"GIF has byte {encoded[at]:#04x} where a frame or an extension must begin: the"
                " file is damaged"
            )
        end = _gif_blocks_end(encoded, at + 2)
        if encoded[at + 1] == 0xF9:
            control = encoded[at:end]
        at = end
    raise UndecodableImage(
        f"GIF has more than {BLOCKS_MAX} extensions before its first frame: save it again"
    )


def _gif_blocks_end(encoded: bytes, at: int) -> int:
    """The offset after the sub-blocks that begin at *at*."""
    for _ in range(BLOCKS_MAX):
        if encoded[at] == 0:
            return at + 1
        at += 1 + encoded[at]
    raise UndecodableImage(f"GIF has an extension of more than {BLOCKS_MAX} blocks: save it again")

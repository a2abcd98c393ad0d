"""The size of the frames of AV1 data, from its sequence headers.

Source: AV1 Bitstream Specification, sections 5.3 to 5.5.
"""

from __future__ import annotations

from models.errors import UndecodableImage
from models.pixels.containers.container import BLOCKS_MAX

_SEQUENCE_HEADER = 1


def frame_pixels(data: bytes) -> int:
    """Pixels of the largest frame that *data* (open bitstream units) announces; 0 for none."""
    largest, at = 0, 0
    for _ in range(BLOCKS_MAX):
        if at >= len(data):
            return largest
        head = data[at]
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size, at = _leb128(data, at)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            width, height = _sequence_size(_Bits(data[at : at + min(size, 64)]))
            largest = max(largest, width * height)
        at += size
    raise UndecodableImage(f"AVIF picture has more than {BLOCKS_MAX} units: save it again")


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """The number at *at*, and where it ends."""
    value = 0
    for place in range(8):
        value |= (data[at + place] & 127) << (7 * place)
        if not data[at + place] & 128:
            return value, at + place + 1
    raise UndecodableImage("AVIF picture has a length of more than 8 bytes: the file is damaged")


class _Bits:
    """Numbers of a few bits, highest bit first. Raises `IndexError` at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value

    def skip_uvlc(self) -> None:
        zeros = 0
        while not self.take(1):
            zeros += 1
        self.take(min(zeros, 32))


def _sequence_size(bits: _Bits) -> tuple[int, int]:
    bits.take(4)  # profile, still_picture
    if bits.take(1):  # reduced_still_picture_header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits, has_model = 0, 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        if bits.take(1):  # equal_picture_interval
            bits.skip_uvlc()
        has_model = bits.take(1)
        if has_model:
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # seq_level_idx; above it a tier stands
            bits.take(1)
        if has_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)

"""Limits on what an image costs: the estimate from the header is never too low, and is enforced."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from models.errors import TooManyPixels, UndecodableImage
from models.package.manifest import ALL_FORMATS, LIMITS, ImageFormat, PreprocessSpec
from models.pixels import decoders
from models.pixels.containers import read
from models.pixels.preprocess import decode, to_pixels
from tests.models.pixels.test_preprocess import encode, png, png_chunk, ramp

ROOT = Path(__file__).resolve().parents[3]
SPEC = PreprocessSpec(dct_margin=2.0)
WIDE, HIGH = 1200, 1000
SLACK_BYTES = 8 << 20
"""What a decoder's tables, row buffers and the resized picture take beside the pixels."""
register_heif_opener()

MEASURE = """
import json, os, sys
from pathlib import Path
import benchmarks.image_cost as cost
for name in sys.argv[1:]:
    encoded = Path(name).read_bytes()
    estimate, _ = cost.estimated(encoded)
    if not os.fork():  # so that no measurement finds memory that one before has left
        peak = cost.measured(encoded, "serve")["peak_bytes"]
        print(json.dumps([estimate, peak, len(encoded)]), flush=True)
        os._exit(0)
    os.wait()
"""


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(-6, 7, (HIGH, WIDE, 3))
    return Image.fromarray(
        (np.asarray(ramp(WIDE, HIGH), np.int16) + noise).clip(0, 255).astype(np.uint8)
    )


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpeg progressive 4:4:4": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "jpeg cmyk": ("CMYK", "JPEG", {"progressive": True}),
    "png": ("RGB", "PNG", {}),
    "png alpha": ("LA", "PNG", {}),
    "png palette": ("P", "PNG", {"transparency": bytes([90] * 256)}),
    "png deep": ("I;16", "PNG", {"transparency": 257}),
    "webp": ("RGB", "WEBP", {"method": 0}),
    "webp alpha": ("RGBA", "WEBP", {"method": 0, "lossless": True}),
    "gif": ("P", "GIF", {"transparency": 3}),
    "bmp": ("RGBA", "BMP", {}),
    "tiff": ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
    "tiff cmyk": ("CMYK", "TIFF", {}),
    "avif": ("RGBA", "AVIF", {"speed": 10, "subsampling": "4:4:4"}),
    "heic": ("RGBA", "HEIC", {"enc_params": {"preset": "ultrafast"}}),
}


def measured(*files: Path) -> list[tuple[int, int, int]]:
    """Estimated bytes, peak bytes and file bytes of each of *files*."""
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, *files],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_memory_stays_below_the_estimate_and_twice_the_file(tmp_path):
    for kind, (mode, image_format, options) in KINDS.items():
        image = deep() if mode == "I;16" else picture().convert(mode)
        (tmp_path / kind).write_bytes(encode(image, image_format, **options))
    found = dict(zip(KINDS, measured(*(tmp_path / kind for kind in KINDS)), strict=True))
    assert {
        kind: row for kind, row in found.items() if row[1] > row[0] + 2 * row[2] + SLACK_BYTES
    } == {}


def plain_jpeg(width: int, height: int, *, progressive: bool = False) -> bytes:
    """A JPEG of one grey tone and that size, without making so many pixels: a small one, whose
    blocks are repeated.
    """
    stream = io.BytesIO()
    Image.new("L", (width, height), 90).save(stream, "JPEG", quality=30, progressive=progressive)
    return stream.getvalue()


def test_a_photo_of_200_megapixels_is_fine_by_default_and_takes_little_memory(tmp_path):
    (tmp_path / "file").write_bytes(plain_jpeg(16320, 12240))
    [(_, peak, _)] = measured(tmp_path / "file")
    assert peak < 80 << 20
    assert decode((tmp_path / "file").read_bytes(), SPEC).size == (2040, 1530)
    assert decode((tmp_path / "file").read_bytes(), SPEC, crop_share=0.5).size == (1020, 765)


def with_frame(encoded: bytes, width: int, height: int) -> bytes:
    """*encoded*, a JPEG, with another size in its frame header."""
    at = (
        next(
            encoded.index(bytes((0xFF, marker)))
            for marker in (0xC0, 0xC2)
            if bytes((0xFF, marker)) in encoded
        )
        + 5
    )
    return encoded[:at] + struct.pack(">HH", height, width) + encoded[at + 4 :]


def test_the_coefficients_of_a_progressive_jpeg_count(monkeypatch):
    monkeypatch.setattr(decoders, "_DECODERS", {})
    small = encode(ramp(64, 64), "JPEG", progressive=True, subsampling=0)
    needed = 2 * 3 * 16000 * 12000 + 4 * 2000 * 1500
    with pytest.raises(
        TooManyPixels,
        match=(
            rf"^JPEG of 16000x12000 pixels takes {needed} bytes of memory to decode, expected at"
            rf" most {LIMITS.max_decode_bytes} "
            r"\(max_decode_bytes\): scale it down, or save it as a baseline JPEG$"
        ),
    ):
        to_pixels(with_frame(small, 16000, 12000), SPEC)


def test_a_jpeg_in_separate_scans_is_bounded_as_a_progressive_one():
    """The decoder keeps all coefficients of a baseline JPEG too, if its first scan has not all
    components; scans without end cost time.
    """
    encoded = encode(ramp(64, 64), "JPEG", subsampling=0)
    at = encoded.index(b"\xff\xda")
    one_scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + b"\0\0"
    assert read(encoded, "JPEG").fixed_bytes == 0
    assert read(encoded[:at] + one_scan + b"\xff\xd9", "JPEG").fixed_bytes == 2 * 3 * 64 * 64
    with pytest.raises(UndecodableImage, match="has too many scans, 65 with"):
        to_pixels(encoded[:at] + one_scan * 65 + b"\xff\xd9", SPEC)
    large = with_frame(encoded[:at] + one_scan * 30 + b"\xff\xd9", 16000, 12000)
    with pytest.raises(
        UndecodableImage,
        match="JPEG of 16000x12000 pixels has too many scans, 21 with 4032000000 samples",
    ):
        to_pixels(large, SPEC)


@pytest.mark.parametrize("image_format", [name for name in ALL_FORMATS if name != "JPEG"])
def test_other_formats_are_bounded_by_their_decoded_bytes(image_format: ImageFormat, monkeypatch):
    encoded = encode(ramp(400, 300), image_format)
    needed = 400 * 300 * read(encoded, image_format).pixel_bytes
    assert to_pixels(encoded, PreprocessSpec(max_decode_bytes=needed)).shape == (224, 224, 3)
    monkeypatch.setattr(decoders, "_decoder", pytest.fail)
    with pytest.raises(
        TooManyPixels,
        match=(
            f"^{image_format} of 400x300 pixels takes {needed} bytes .* save it as a baseline JPEG$"
        ),
    ):
        to_pixels(encoded, PreprocessSpec(max_decode_bytes=needed - 1))


def test_turning_and_converting_count():
    exif = Image.Exif()
    exif[274] = 6
    for options, bytes_per_pixel in (({}, 4), ({"exif": exif.tobytes()}, 8)):
        encoded = encode(ramp(400, 300), "PNG", **options)
        assert to_pixels(
            encoded, PreprocessSpec(max_decode_bytes=400 * 300 * bytes_per_pixel)
        ).shape == (224, 224, 3)
        with pytest.raises(TooManyPixels):
            to_pixels(encoded, PreprocessSpec(max_decode_bytes=400 * 300 * bytes_per_pixel - 1))


def test_a_png_that_promises_gigabytes_is_refused_from_its_header():
    bomb = png(depth=8, colour_type=6, rows=b"", size=(15000, 15000))
    with pytest.raises(TooManyPixels, match="PNG of 15000x15000 pixels takes 3375000000 bytes"):
        to_pixels(bomb, SPEC)
    assert len(zlib.compress(bytes(1 << 20))) + len(png_chunk(b"IDAT", b"")) < 2000


def test_what_was_taken_under_the_old_limit_is_taken_still():
    """25 megapixels of any format, transparent, turned and converted."""
    for image_format in ALL_FORMATS:
        modes = {"JPEG": "CMYK", "GIF": "P"}
        image = ramp(200, 100).convert(modes.get(image_format, "RGBA"))
        container = read(encode(image, image_format), image_format)
        assert 25_000_000 * (container.pixel_bytes + 4) <= LIMITS.max_decode_bytes, image_format


def test_a_package_of_an_earlier_release_is_read_and_its_limits_give_way():
    written = {
        **PreprocessSpec().model_dump(),
        "max_pixels": 25_000_000,
        "max_side": 16_384,
        "formats": ("JPEG", "PNG", "WEBP"),
    }
    del written["max_decode_bytes"]
    spec = PreprocessSpec.model_validate(written)
    assert (spec.max_pixels, spec.max_decode_bytes) == (25_000_000, LIMITS.max_decode_bytes)
    assert spec.widened() == spec.model_copy(
        update={"max_pixels": LIMITS.max_pixels, "max_side": LIMITS.max_side}
    )
    assert spec.within(LIMITS._replace(max_pixels=9)).max_pixels == 9

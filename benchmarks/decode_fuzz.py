"""Mutated images through the preprocessing: it gives pixels or our own error, and keeps no memory.

    .venv/bin/python -m benchmarks.decode_fuzz [--images 1000000] [--seed 0] [--out FILE]

Small files of every format are cut, flipped, spliced and filled with extreme numbers. The figures
are exceptions other than `ImageError`, decodes of more than 2 s, and memory that grows with the
number of images. One thread runs everything. If a decode crashes the process, the file that caused
it stays in the temporary folder that is printed at the start.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener

from benchmarks.record import command, machine, results_file, write
from models.errors import ImageError
from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import decode, to_pixels

SLOW_S = 2.0
HANG_S = 120
"""A block of images that takes longer is a hang: the process ends and prints its stack."""
BLOCK = 10_000
EXTREMES = (
    b"\0",
    b"\1",
    b"\x7f",
    b"\x80",
    b"\xfe",
    b"\xff",
    b"\xff\xff",
    b"\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
)
SPEC = PreprocessSpec(
    resize_size=16,
    crop=(16, 12),
    convert_icc=True,
    dct_margin=1.0,
    max_pixels=4_000_000,
    max_decode_bytes=128 << 20,
)


@dataclass
class Outcome:
    """The results of the images so far."""

    images: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    """Code of the error, or `pixels` -> images."""
    slowest_s: float = 0.0
    slow: int = 0
    """Images that took more than `SLOW_S`."""
    wrong: list[str] = field(default_factory=list)
    """Exceptions other than ours, with the position of the image in the sequence."""


def main() -> None:
    """Run, print a line for each block, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=results_file("decode_fuzz"))
    options = parser.parse_args()
    last = Path(tempfile.mkdtemp(prefix="loupe-fuzz-")) / "last.bin"
    print(f"the image at work is in {last}", flush=True)
    outcome, memory = Outcome(), []
    images = mutated(seeds(), random.Random(options.seed))
    started = time.monotonic()
    while outcome.images < options.images:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try_images(
            images, min(BLOCK, options.images - outcome.images), outcome, keep=last.write_bytes
        )
        faulthandler.cancel_dump_traceback_later()
        outcome.seconds = time.monotonic() - started
        memory.append(resident_bytes())
        print(
            f"{outcome.images:,} images, {outcome.seconds:.0f} s, slowest {outcome.slowest_s:.3f}"
            f" s, {memory[-1] >> 20} MiB, wrong {len(outcome.wrong)}, {dict(outcome.codes)}",
            flush=True,
        )
    report = {
        "command": command("decode_fuzz"),
        "machine": machine(),
        "images": outcome.images,
        "seconds": outcome.seconds,
        "outcomes": dict(outcome.codes),
        "slowest_s": outcome.slowest_s,
        "slower_than_2_s": outcome.slow,
        "wrong": outcome.wrong,
        "resident_bytes": {"first block": memory[0], "last block": memory[-1], "most": max(memory)},
    }
    write(report, options.out)
    sys.exit(bool(outcome.wrong or outcome.slow))


def try_images(
    images: Iterator[bytes], count: int, outcome: Outcome, *, keep: Callable[[bytes], Any] = len
) -> None:
    """Decode the next *count* images and add to *outcome*.

    Most are decoded as in serving, every fifth as in training. *keep* gets each image before.
    """
    for _ in range(count):
        encoded = next(images)
        keep(encoded)
        began = time.monotonic()
        try:
            if outcome.images % 5:
                pixels = to_pixels(encoded, SPEC)
                if pixels.shape != (16, 12, 3):
                    outcome.wrong.append(f"image {outcome.images}: pixels of shape {pixels.shape}")
            else:
                decode(encoded, SPEC, crop_share=0.5)
            code = "pixels"
        except ImageError as error:
            code = error.code
        except Exception as error:  # noqa: BLE001 - what this looks for
            code = "wrong"
            outcome.wrong.append(f"image {outcome.images}: {error!r}")
        took_s = time.monotonic() - began
        outcome.images += 1
        outcome.codes[code] += 1
        outcome.slowest_s = max(outcome.slowest_s, took_s)
        outcome.slow += took_s > SLOW_S


def mutated(files: Mapping[str, bytes], chance: random.Random) -> Iterator[bytes]:
    """One of *files* after one to six changes, without end."""
    kinds = sorted(files)
    while True:
        encoded = bytearray(files[chance.choice(kinds)])
        for _ in range(chance.randint(1, 6)):
            _change(encoded, files[chance.choice(kinds)], chance)
        if encoded:
            yield bytes(encoded)


def _change(encoded: bytearray, other: bytes, chance: random.Random) -> None:
    """One change, most often near the front, where headers are."""
    at = (
        chance.randrange(min(len(encoded), chance.choice((40, 300, len(encoded)))) or 1)
        if encoded
        else 0
    )
    match chance.randrange(8):
        case 0:
            encoded[at : at + 1] = bytes([chance.randrange(256)])
        case 1:
            encoded[at : at + 1] = (
                bytes([encoded[at] ^ 1 << chance.randrange(8)]) if encoded else b""
            )
        case 2:
            extreme = chance.choice(EXTREMES)
            encoded[at : at + len(extreme)] = extreme
        case 3:
            del encoded[at : at + chance.choice((1, 2, 4, 40, 1000))]
        case 4:
            encoded[at:at] = chance.randbytes(chance.choice((1, 2, 4, 40)))
        case 5:
            length = chance.choice((4, 16, 200))
            encoded[at:at] = encoded[at : at + length] * chance.choice((1, 2, 50))
        case 6:
            start = chance.randrange(len(other))
            encoded[at : at + 64] = other[start : start + chance.choice((8, 64, 400))]
        case _:
            if chance.randrange(4) == 0:
                del encoded[at:]


def seeds() -> dict[str, bytes]:
    """A small complete file of every kind: format, mode, compression, animation, metadata."""
    register_heif_opener()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    rgba, palette = rgb.convert("RGBA"), rgb.quantize(16)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = 6
    extras: dict[str, Any] = {
        "exif": exif.tobytes(),
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }

    def two(image: Image.Image) -> dict[str, Any]:
        # A new image each time: saving one leaves its encoder's settings on it.
        return {"save_all": True, "append_images": [image.rotate(180)]}

    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", extras),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg grey": (rgb.convert("L"), "JPEG", {}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {"progressive": True}),
        "mpo": (rgb, "MPO", two(rgb)),
        "png": (rgb, "PNG", extras),
        "png palette": (palette, "PNG", {"transparency": 3}),
        "png deep": (deep, "PNG", {}),
        "png bits": (rgb.convert("1"), "PNG", {}),
        "png alpha": (rgb.convert("LA"), "PNG", {}),
        "apng": (rgb, "PNG", two(rgb)),
        "webp": (rgb, "WEBP", extras),
        "webp lossless": (rgba, "WEBP", {"lossless": True}),
        "webp animated": (rgb, "WEBP", two(rgb)),
        "gif": (palette, "GIF", two(palette) | {"transparency": 3}),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (palette, "BMP", {}),
        "bmp alpha": (rgba, "BMP", {}),
        "tiff": (rgb, "TIFF", extras),
        "tiff lzw": (rgba, "TIFF", {"compression": "tiff_lzw"}),
        "tiff jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff fax": (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff deep": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff pages": (rgb, "TIFF", two(rgb)),
        "avif": (rgb, "AVIF", extras),
        "avif alpha": (rgba, "AVIF", {"subsampling": "4:4:4"}),
        "avif animated": (rgb, "AVIF", two(rgb)),
        "heic": (rgb, "HEIF", extras),
        "heic alpha": (rgba, "HEIF", {}),
        "heic grid": (rgb.resize((192, 160)), "HEIF", {"tile_size": 64}),
    }
    return {name: _encoded(image, kind, options) for name, (image, kind, options) in kinds.items()}


def _encoded(image: Image.Image, image_format: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.copy().save(stream, image_format, **options)
    return stream.getvalue()


def resident_bytes() -> int:
    """Memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()

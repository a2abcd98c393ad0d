"""Peak memory and CPU time to prepare one photo, by format and megapixels, against the limits.

    .venv/bin/python -m benchmarks.image_cost [--data ../shared/data]
                                              [--megapixels 12 48 50 108 200] [--out FILE]

Each photo is a mosaic of real ones, so it has their detail. It is written once and prepared in its
own process. `serve` prepares it as the service does: scaled to 256, crop of 224. `train` prepares
it as training does before a random crop of at least half of the area. Memory is the peak of the
process above the memory before, without the file itself. Time is CPU time. `estimate` is the number
that `max_decode_bytes` is compared with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image
from pillow_heif import register_heif_opener

from benchmarks.record import command, machine, results_file, shared_data, write
from models.errors import ImageError
from models.package.manifest import LIMITS, PreprocessSpec
from models.pixels.preprocess import decode, to_pixels

SIZES = {
    12: (4000, 3000),
    48: (8064, 6048),
    50: (8160, 6120),
    108: (12000, 9000),
    200: (16320, 12240),
}
"""Megapixels -> width and height, as in phones."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 90}),
    "JPEG progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "PNG": ("PNG", {"compress_level": 1}),
    "WEBP": ("WEBP", {"quality": 80, "method": 0}),
    "HEIC": ("HEIF", {"quality": 50, "tile_size": 512, "enc_params": {"preset": "ultrafast"}}),
}
MEGAPIXELS_MAX = {"WEBP": 50, "HEIC": 108}
"""libwebp cannot write a larger mosaic, and a larger HEIC takes many minutes to write."""
TILE_PX = 500
UNLIMITED = PreprocessSpec(dct_margin=2.0, max_decode_bytes=1 << 40)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=shared_data())
    parser.add_argument(
        "--megapixels", type=int, nargs="+", choices=sorted(SIZES), default=sorted(SIZES)
    )
    parser.add_argument("--out", type=Path, default=results_file("image_cost"))
    parser.add_argument(
        "--one",
        nargs=2,
        metavar=("FILE", "USE"),
        help="measure in this process: what the benchmark starts itself with",
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(Path(options.one[0]).read_bytes(), options.one[1])))
        return
    rows = []
    for megapixels in options.megapixels:
        for row in _measure_all(options.data / "imagenet-500", megapixels):
            rows.append(row)
            print(
                f"{row['kind']:17} {megapixels:4} MP  file {row['file_bytes'] / 2**20:6.1f} MiB "
                f" estimate {row['estimate_bytes'] / 2**20:6.0f} MiB"
                f" {'refused' if row['refused'] else 'taken':8} "
                + "  ".join(
                    f"{use} {row[use]['peak_bytes'] / 2**20:6.0f} MiB"
                    f" {row[use]['cpu_seconds']:6.2f} s"
                    for use in ("serve", "train")
                ),
                flush=True,
            )
    write(
        {
            "command": command("image_cost"),
            "machine": machine(),
            "limits": LIMITS._asdict(),
            "rows": rows,
        },
        options.out,
    )


def _measure_all(photos: Path, megapixels: int) -> Iterator[dict[str, Any]]:
    register_heif_opener()
    picture = mosaic(photos, SIZES[megapixels])
    with tempfile.TemporaryDirectory() as folder:
        for kind, (image_format, settings) in KINDS.items():
            if megapixels > MEGAPIXELS_MAX.get(kind, megapixels):
                continue
            file = Path(folder) / kind
            with file.open("wb") as stream:
                picture.copy().save(stream, image_format, **settings)
            estimate, refused = estimated(file.read_bytes())
            row: dict[str, Any] = {
                "kind": kind,
                "megapixels": megapixels,
                "size": picture.size,
                "file_bytes": file.stat().st_size,
            }
            yield (
                row
                | {"estimate_bytes": estimate, "refused": refused}
                | {use: _in_process(file, use) for use in ("serve", "train")}
            )
            file.unlink()


def mosaic(photos: Path, size: tuple[int, int]) -> Image.Image:
    """A picture of *size* made of the photos in a folder."""
    files = cycle(sorted(photos.glob("*.jpg")))
    picture = Image.new("RGB", size)
    for top in range(0, size[1], TILE_PX):
        for left in range(0, size[0], TILE_PX):
            with Image.open(next(files)) as photo:
                picture.paste(photo.convert("RGB").resize((TILE_PX, TILE_PX)), (left, top))
    return picture


def estimated(encoded: bytes) -> tuple[int, bool]:
    """The estimated memory for decoding, and whether the default limit refuses the image.

    The estimate comes from the refusal under a limit of one byte.
    """
    try:
        decode(encoded, UNLIMITED.model_copy(update={"max_decode_bytes": 1}))
    except ImageError as error:
        needed = int(str(error).partition(" takes ")[2].split()[0])
        return needed, needed > LIMITS.max_decode_bytes
    raise AssertionError("an image cannot take less than a byte")


def _in_process(file: Path, use: str) -> dict[str, float]:
    code = [sys.executable, "-m", "benchmarks.image_cost", "--one", str(file), use]
    answer: dict[str, float] = json.loads(
        subprocess.run(code, check=True, capture_output=True, text=True).stdout
    )
    return answer


def measured(encoded: bytes, use: str) -> dict[str, float]:
    """Peak memory and CPU time of preparing *encoded* for *use* in this process."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, started = status_bytes("VmRSS"), time.process_time()
    if use == "serve":
        to_pixels(encoded, UNLIMITED)
    else:
        decode(encoded, UNLIMITED, crop_share=0.5)
    return {
        "cpu_seconds": time.process_time() - started,
        "peak_bytes": status_bytes("VmHWM") - before,
    }


def status_bytes(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()

"""The checks of single images: those that cannot be read, and sizes, looks and endings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from models.pixels.endings import ENDINGS
from training.data.check.findings import Finding, Level, Notes, of_images
from training.data.check.inspection import SPEC, Picture, Seen

TINY_PX = 32
LONG_SIDE_PX = 4096
ASPECT_MAX = 4.0
DARK, BRIGHT = 0.06, 0.95
"""Mean luma, 0 to 1. The 897 photos of hymenoptera and imagenet-500 lie between 0.09 and 0.94."""
BLURRED = 0.012
"""Sharpness at 256 pixels, see `models.runtime.drift_signals.sharpness`. The least of the same
photos is 0.022."""
FAULTS = {
    "missing": ("missing", "cannot be read from disk", "restore or remove"),
    "empty": ("empty file", "with 0 bytes", "restore or remove"),
    "damaged": (
        "undecodable",
        "damaged or cut short",
        "copy again from the origin, or remove; training leaves out up to one image in twenty",
    ),
    "format": (
        "format",
        f"of a format that is not read ({', '.join(SPEC.formats)} are)",
        "convert",
    ),
    "huge": (
        "huge",
        (
            f"above {SPEC.max_pixels // 1_000_000} megapixels, {SPEC.max_side} pixels a side or"
            f" {SPEC.max_decode_bytes >> 20} MiB to decode"
        ),
        "scale down",
    ),
}
"""Fault -> check, what is wrong, and advice."""
LOOK = "look at them: remove those in which a person would not know the class"
_Note = Callable[[Picture], str]
_SIZE: _Note = "{0.width}x{0.height}".format
_BRIGHTNESS: _Note = "brightness {0.brightness:.2f}".format
PICTURES: tuple[tuple[Level, str, str, str, Callable[[Picture], bool], _Note], ...] = (
    (
        "warning",
        "tiny",
        f"with a side under {TINY_PX} pixels",
        "there is little to see; remove, or train at that size",
        lambda p: p.short_px < TINY_PX,
        _SIZE,
    ),
    (
        "info",
        "small",
        f"with a side under {min(SPEC.crop)} pixels",
        "they are enlarged; train at a smaller image_size",
        lambda p: TINY_PX <= p.short_px < min(SPEC.crop),
        _SIZE,
    ),
    (
        "info",
        "large",
        f"with a side over {LONG_SIDE_PX} pixels",
        "scale down once, for faster epochs",
        lambda p: p.long_px > LONG_SIDE_PX,
        _SIZE,
    ),
    (
        "warning",
        "aspect ratio",
        f"more than {ASPECT_MAX:.0f} times as long as wide",
        "the crop sees a small part; cut them up",
        lambda p: p.long_px > ASPECT_MAX * p.short_px,
        _SIZE,
    ),
    (
        "info",
        "EXIF-rotated",
        "stored turned or mirrored",
        "Loupe turns them upright; other programs may not",
        lambda p: p.orientation != 1,
        _SIZE,
    ),
    (
        "warning",
        "blank",
        "of one flat colour",
        "remove what is no photo",
        lambda p: p.is_blank,
        "".format,
    ),
    (
        "info",
        "dark",
        "very dark",
        LOOK,
        lambda p: not p.is_blank and p.brightness < DARK,
        _BRIGHTNESS,
    ),
    (
        "info",
        "bright",
        "very bright",
        LOOK,
        lambda p: not p.is_blank and p.brightness > BRIGHT,
        _BRIGHTNESS,
    ),
    (
        "info",
        "blurred",
        "without sharp detail",
        LOOK,
        lambda p: not p.is_blank and p.sharpness < BLURRED,
        "sharpness {0.sharpness:.4f}".format,
    ),
)
"""Level, check, what is found, advice, which pictures it applies to, and a note on each."""


def faults(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Images that cannot be trained on."""
    for fault, texts in FAULTS.items():
        notes: Notes = {
            (at,): image.reason for at, image in enumerate(seen) if image.fault == fault
        }
        yield from of_images("error", *texts, notes)


def pictures(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Images of odd size or look, by the rules in `PICTURES`."""
    pictures = {(at,): image.picture for at, image in enumerate(seen) if image.picture is not None}
    for level, check, what, advice, applies, note in PICTURES:
        notes: Notes = {
            place: note(picture) for place, picture in pictures.items() if applies(picture)
        }
        yield from of_images(level, check, what, advice, notes)


def extensions(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Images whose name ends with the wrong or a rare extension."""
    suffixes = [PurePosixPath(image.example.name).suffix for image in seen]
    yield from of_images(
        "warning",
        "extension",
        "whose content is not what the name says",
        "Loupe goes by the content, other programs by the name: rename",
        {
            (at,): f"is {image.found_format}"
            for at, (image, suffix) in enumerate(zip(seen, suffixes, strict=True))
            if image.found_format
            and image.found_format != ENDINGS.get(suffix.lower(), image.found_format)
        },
        "file",
    )
    counted = Counter(suffixes)
    if len(counted) > 1:
        common = counted.most_common()
        rare = [(at,) for at, suffix in enumerate(suffixes) if counted[suffix] * 20 < len(seen)]
        yield Finding(
            "info",
            "mixed extensions",
            "names end differently: "
            + ", ".join(f"{count} {suffix or 'without'}" for suffix, count in common),
            "a program that looks for one ending misses the others",
            tuple(rare),
        )

"""The checks of a source and of single images: each gives findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from models.errors import DataError
from models.pixels import containers
from models.pixels.endings import ENDINGS, LISTED
from training.data.check.inspection import SPEC, Inspected, Picture
from training.data.layout.names import alike, few_of, number, printable
from training.data.layout.splits import WHOLE
from training.data.sources.dataset import Unused
from training.data.sources.listing import Listing

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
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
        "remove files that are not photos",
        lambda p: p.is_blank,
        "".format,
    ),
    ("info", "dark", "very dark", LOOK, lambda p: p.brightness < DARK, _BRIGHTNESS),
    ("info", "bright", "very bright", LOOK, lambda p: p.brightness > BRIGHT, _BRIGHTNESS),
    (
        "info",
        "blurred",
        "without sharp detail",
        LOOK,
        lambda p: p.sharpness < BLURRED,
        "sharpness {0.sharpness:.4f}".format,
    ),
)
"""Level, check, what is found, advice, which pictures it applies to, and a note on each."""
FEW_IMAGES = 10
IMBALANCE: dict[Level, float] = {"warning": 10.0, "info": 3.0}
"""Level -> from which ratio of the largest to the smallest class it applies."""
LOST = ("unreadable", "dangling", "linked", "not named", "in no row")
"""Reasons that begin like this may mean lost images."""
Notes = Mapping[tuple[int, ...], str]
"""Places of images that belong together -> a note on them, or nothing."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found, with all its images."""

    level: Level
    """`error`: training refuses it or leaves it out, or its figures would be false. `warning`: the
    model will be worse, or the figures doubtful. `info`: good to know."""
    check: str
    message: str
    advice: str = ""
    groups: tuple[tuple[int, ...], ...] = ()
    """Places in the list of all images. Images that belong together, as copies do, are a group."""
    notes: tuple[str, ...] = ()
    """A note on each group; empty if there are none."""
    files: tuple[str, ...] = ()
    """Names of what is no image of the data set, such as skipped files."""

    @property
    def noted(self) -> list[tuple[tuple[int, ...], str]]:
        """Each group with its note."""
        return list(zip(self.groups, self.notes or ("",) * len(self.groups), strict=True))


def of_images(
    level: Level,
    check: str,
    what: str,
    advice: str,
    notes: Notes,
    noun: str = "image",
) -> Iterator[Finding]:
    """The finding of the groups of images in *notes*, group -> note; nothing if it is empty."""
    if notes:
        message = f"{number(notes, noun)} {what}"
        told = tuple(notes.values()) if any(notes.values()) else ()
        yield Finding(level, check, message, advice, tuple(notes), told)


def layout(listing: Listing) -> Iterator[Finding]:
    """What training would refuse or should ask about, and labels that are nearly alike."""
    advice = "repair this first: the data cannot be used for training"
    for problem in (*listing.problems, *listing.training_problems):
        yield Finding("error", "layout", printable(problem), advice)
    advice = "look at it: if it is as you mean it, nothing is to do"
    for text in listing.warnings:
        yield Finding("warning", "layout", printable(text), advice)
    if not {WHOLE, "train"} & set(listing.splits):
        advice = "the data can judge a model but not train one"
        yield Finding("warning", "layout", f"there is no train {listing.split_noun}", advice)
    if groups := alike(listing.labels):
        message = (
            f"{number(groups, 'group')} of labels that differ only in case, Unicode form or outer"
            f" white space: {few_of([' and '.join(map(repr, group)) for group in groups])}"
        )
        yield Finding("warning", "labels alike", message, "give what is one class one name")


def classes(listing: Listing, seen: Sequence[Inspected]) -> Iterator[Finding]:
    """Classes that are empty, small or out of proportion, in each split."""
    counted = Counter((i.split, i.example.label) for i in seen if i.picture is not None)
    for split in listing.splits:
        counts = {label: counted[split, index] for index, label in enumerate(listing.labels)}
        where = "" if split == WHOLE else f" in {split}"
        if empty := [label for label, count in counts.items() if not count]:
            several = number(empty, "class", "classes")
            message = f"{several} without a readable image{where}: {few_of(empty)}"
            yield Finding("error", "empty class", message, "add images, or remove it")
        few = [f"{label} ({count})" for label, count in counts.items() if 0 < count < FEW_IMAGES]
        if few:
            several = number(few, "class", "classes")
            message = f"{several} with fewer than {FEW_IMAGES} images{where}: {few_of(few)}"
            advice = "the figures of such a class are chance; gather more"
            yield Finding("warning", "few images", message, advice)
        if split in ("train", WHOLE):
            yield from _imbalance(Counter(counts), where)


def _imbalance(counts: Counter[str], where: str) -> Iterator[Finding]:
    if not (ranked := (+counts).most_common()):
        return
    (largest, most), (smallest, least) = ranked[0], min(ranked, key=lambda item: item[1])
    ratio = most / least
    level = next((level for level, least_ratio in IMBALANCE.items() if ratio >= least_ratio), None)
    if level is not None:
        message = (
            f"{largest} has {ratio:.1f} times the images of {smallest}{where} ({most} and {least})"
        )
        advice = "gather more of the small classes; look at recall by class, not at accuracy alone"
        yield Finding(level, "imbalance", message, advice)


def unused(listing: Listing) -> Iterator[Finding]:
    """One finding for each reason: a warning where images are lost."""
    names: dict[tuple[Level, str], list[str]] = {}
    for entry in listing.unused:
        found = _format(entry)
        level: Level = "warning" if found or entry.reason.startswith(LOST) else "info"
        name = f"{entry.name} ({found})" if found else entry.name
        names.setdefault((level, entry.reason), []).append(name)
    advice = f"move or convert what belongs to the data, remove the rest; read are {LISTED}"
    for (level, reason), files in names.items():
        lost = level == "warning"
        yield Finding(
            level,
            "skipped images" if lost else "skipped files",
            f"not read: {len(files):,} {reason}: {few_of(files)}",
            advice if lost else "",
            files=tuple(files),
        )


def _format(entry: Unused) -> str | None:
    """The format of an image that is not used; None if it is no image, or cannot be read."""
    try:
        return containers.sniff(entry.content.head(1024)) if entry.content else None
    except DataError:
        return None


def faults(seen: Sequence[Inspected]) -> Iterator[Finding]:
    """Images that cannot be trained on."""
    for fault, texts in FAULTS.items():
        notes: Notes = {
            (at,): image.reason for at, image in enumerate(seen) if image.fault == fault
        }
        yield from of_images("error", *texts, notes)


def pictures(seen: Sequence[Inspected]) -> Iterator[Finding]:
    """Images of odd size or look, by the rules in `PICTURES`."""
    pictures = {(at,): image.picture for at, image in enumerate(seen) if image.picture is not None}
    for level, check, what, advice, applies, note in PICTURES:
        notes: Notes = {
            place: note(picture)
            for place, picture in pictures.items()
            # What is blank is dark, bright or blurred anyway.
            if applies(picture) and not (advice is LOOK and picture.is_blank)
        }
        yield from of_images(level, check, what, advice, notes)


def extensions(seen: Sequence[Inspected]) -> Iterator[Finding]:
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

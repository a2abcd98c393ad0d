"""The checks of `loupe data check`: each gives findings from the images that were inspected."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from models.errors import DataError
from models.pixels import containers
from models.pixels.endings import ENDINGS, LISTED
from training.data.check.duplicates import PAIRS_MAX, exact_groups, near_pairs
from training.data.check.inspection import SPEC, Picture, Seen
from training.data.layout.names import alike, few_of, number, printable
from training.data.layout.splits import WHOLE
from training.data.sources.dataset import Unused
from training.data.sources.listing import Listing

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
TINY_PX = 32
LONG_SIDE_PX = 4096
ASPECT_MAX = 4.0
FEW_IMAGES = 10
IMBALANCE: dict[Level, float] = {"warning": 10.0, "info": 3.0}
"""Least ratio of the largest class to the smallest for each level."""
DARK, BRIGHT = 0.06, 0.95
"""Mean luma, 0 to 1. The 897 photos of hymenoptera and imagenet-500 lie between 0.09 and 0.94."""
BLURRED = 0.012
"""Sharpness at 256 pixels, see `models.runtime.drift_signals.sharpness`. The least of the same
photos is 0.022."""
LOST = ("unreadable", "dangling", "linked", "not named", "in no row")
"""Beginnings of the reasons for which images may be lost."""

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
_Notes = Mapping[tuple[int, ...], str]
"""Places of images that belong together -> a note on them, or nothing."""
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
    """Places in the list of all images. Images that belong together, such as copies, are a group."""
    notes: tuple[str, ...] = ()
    """A note on each group; empty if there are none."""
    files: tuple[str, ...] = ()
    """Names of what is no image of the data set, such as skipped files."""

    @property
    def noted(self) -> list[tuple[tuple[int, ...], str]]:
        """Each group with its note."""
        return list(zip(self.groups, self.notes or ("",) * len(self.groups), strict=True))


def examine(listing: Listing, seen: Sequence[Seen]) -> list[Finding]:
    """All findings, errors first, in the order of the checks."""
    found = [
        *_layout(listing),
        *_classes(listing, seen),
        *_faults(seen),
        *_exact(seen),
        *_near(listing, seen),
        *_extensions(seen),
        *_unused(listing),
        *_pictures(seen),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _layout(listing: Listing) -> Iterator[Finding]:
    advice = "mend this first: the data cannot be trained on"
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


def _classes(listing: Listing, seen: Sequence[Seen]) -> Iterator[Finding]:
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
    if level := next((level for level, from_ in IMBALANCE.items() if ratio >= from_), None):
        message = (
            f"{largest} has {ratio:.1f} times the images of {smallest}{where} ({most} and {least})"
        )
        advice = "gather more of the small classes; look at each class's recall and not at accuracy alone"
        yield Finding(level, "imbalance", message, advice)


def _of_images(
    level: Level,
    check: str,
    what: str,
    advice: str,
    notes: _Notes,
    noun: str = "image",
) -> Iterator[Finding]:
    """A finding of the groups of images in *notes*, group -> note; none if there are none."""
    if notes:
        message = f"{number(notes, noun)} {what}"
        told = tuple(notes.values()) if any(notes.values()) else ()
        yield Finding(level, check, message, advice, tuple(notes), told)


def _faults(seen: Sequence[Seen]) -> Iterator[Finding]:
    for fault, texts in FAULTS.items():
        notes: _Notes = {
            (at,): image.reason for at, image in enumerate(seen) if image.fault == fault
        }
        yield from _of_images("error", *texts, notes)


def _pictures(seen: Sequence[Seen]) -> Iterator[Finding]:
    pictures = {(at,): image.picture for at, image in enumerate(seen) if image.picture is not None}
    for level, check, what, advice, applies, note in PICTURES:
        notes: _Notes = {
            place: note(picture) for place, picture in pictures.items() if applies(picture)
        }
        yield from _of_images(level, check, what, advice, notes)


def _exact(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Each group of copies is named once, under the worst that is true of it."""
    kinds: dict[str, dict[tuple[int, ...], str]] = defaultdict(dict)
    for group in exact_groups(seen):
        labels = {seen[place].example.label for place in group}
        splits = {seen[place].split for place in group}
        kind = "labels" if len(labels) > 1 else "splits" if len(splits) > 1 else "within"
        kinds[kind][group] = ""
    yield from _of_images(
        "error",
        "conflicting labels",
        "under two labels or more",
        "one of the labels is wrong: keep one copy, with the right one",
        kinds["labels"],
    )
    yield from _of_images(
        "error",
        "duplicates across splits",
        "in two splits or more",
        "the model is judged on what it has learnt: keep one copy",
        kinds["splits"],
    )
    yield from _of_images(
        "warning",
        "duplicates",
        "more than once",
        "keep one copy; data that is still to be split puts copies on both sides",
        kinds["within"],
    )


def _near(listing: Listing, seen: Sequence[Seen]) -> Iterator[Finding]:
    kinds: dict[str, dict[tuple[int, ...], str]] = defaultdict(dict)
    pairs = near_pairs(seen)
    for pair in pairs:
        one, other = seen[pair.first], seen[pair.second]
        same_label = one.example.label == other.example.label
        kind = "splits" if one.split != other.split else "within" if same_label else "labels"
        kinds[kind][pair.first, pair.second] = f"{pair.distance} of 64 bits differ"
    more = f" (the search ended at {PAIRS_MAX})" if len(pairs) >= PAIRS_MAX else ""
    yield from _of_images(
        "warning",
        "near-duplicates across splits",
        f"that look alike in different splits{more}",
        "look at them: if they show the same photo, keep both in one split",
        kinds["splits"],
        "pair",
    )
    yield from _of_images(
        "warning",
        "near-duplicates under two labels",
        f"that look alike under different labels{more}",
        "look at them: one label may be wrong",
        kinds["labels"],
        "pair",
    )
    whole = WHOLE in listing.splits
    yield from _of_images(
        "warning" if whole else "info",
        "near-duplicates",
        f"that look alike of the same class and split{more}",
        "keep one of each; data that is still to be split puts them on both sides"
        if whole
        else "they add little",
        kinds["within"],
        "pair",
    )


def _extensions(seen: Sequence[Seen]) -> Iterator[Finding]:
    suffixes = [PurePosixPath(image.example.name).suffix for image in seen]
    yield from _of_images(
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


def _unused(listing: Listing) -> Iterator[Finding]:
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

"""The checks: each a function from what was seen to findings.

The copies have theirs in `duplicates`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from models.errors import DataError
from models.pixels import containers
from models.pixels.endings import ENDINGS, LISTED
from training.data.check.duplicates import PAIRS_MAX, NearPair, exact_groups, is_blank, near_pairs
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
IMBALANCE = {"warning": 10.0, "info": 3.0}
"""Images of the largest class for each of the smallest, from which on the level applies."""
DARK, BRIGHT = 0.06, 0.95
"""Mean luma, 0 to 1. The 897 photos of hymenoptera and imagenet-500 lie between 0.09 and 0.94."""
LOST = ("unreadable", "dangling", "linked", "not named", "in no row")
"""Reasons behind which images may be lost."""
BLURRED = 0.012
"""Sharpness of the image at 256 pixels; see `models.runtime.drift_signals.sharpness`. The least sharp of the same photos has 0.022."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found, with all its images."""

    level: Level
    """`error`: training refuses it, leaves it out, or its figures would be false. `warning`: the model will be worse, or the figures doubtful.
    `info`: good to know."""
    check: str
    message: str
    advice: str = ""
    groups: tuple[tuple[int, ...], ...] = ()
    """Places in the list of all images; images that belong together, such as copies, are one group."""
    notes: tuple[str, ...] = ()
    """A word on each group."""
    files: tuple[str, ...] = ()
    """Names of what is no image of the data set, such as skipped files."""


def examine(listing: Listing, seen: Sequence[Seen]) -> list[Finding]:
    """All findings, errors first, in the order of the checks."""
    found = [
        *_layout(listing),
        *_labels(listing),
        *_classes(listing, seen),
        *_faults(seen),
        *_exact(seen),
        *_near(listing, seen),
        *_extensions(seen),
        *_unused(listing),
        *_sizes(seen),
        *_looks(seen),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def exit_status(findings: Sequence[Finding], *, strict: bool) -> int:
    """0 without errors, 1 with; with *strict* a warning counts as one."""
    bad = {"error", "warning"} if strict else {"error"}
    return int(any(finding.level in bad for finding in findings))


def _layout(listing: Listing) -> Iterator[Finding]:
    for problem in (*listing.problems, *listing.training_problems):
        yield Finding(
            "error", "layout", printable(problem), "mend this first: the data cannot be trained on"
        )
    for text in listing.warnings:
        yield Finding(
            "warning",
            "layout",
            printable(text),
            "look at it: if it is as you mean it, nothing is to do",
        )
    if WHOLE not in listing.splits and "train" not in listing.splits:
        yield Finding(
            "warning",
            "layout",
            f"there is no train {listing.split_noun}",
            "the data can judge a model but not train one",
        )


def _labels(listing: Listing) -> Iterator[Finding]:
    if groups := alike(listing.labels):
        told = few_of([" and ".join(map(repr, group)) for group in groups])
        message = (
            f"{number(groups, 'group')} of labels that differ only in case, Unicode form or outer"
            f" white space: {told}"
        )
        yield Finding("warning", "labels alike", message, "give what is one class one name")


def _classes(listing: Listing, seen: Sequence[Seen]) -> Iterator[Finding]:
    for split in listing.splits:
        counted = Counter(
            image.example.label
            for image in seen
            if image.split == split and image.picture is not None
        )
        counts = {label: counted[index] for index, label in enumerate(listing.labels)}
        where = "" if split == WHOLE else f" in {split}"
        if empty := [label for label, count in counts.items() if count == 0]:
            yield Finding(
                "error",
                "empty class",
                f"{number(empty, 'class', 'classes')} without a readable image{where}:"
                f" {few_of(empty)}",
                "add images, or remove it",
            )
        if few := [
            f"{label} ({count})" for label, count in counts.items() if 0 < count < FEW_IMAGES
        ]:
            advice = "the figures of such a class are chance; gather more"
            yield Finding(
                "warning",
                "few images",
                f"{number(few, 'class', 'classes')} with fewer than {FEW_IMAGES} images{where}:"
                f" {few_of(few)}",
                advice,
            )
        if split in ("train", WHOLE):
            yield from _imbalance({label: count for label, count in counts.items() if count}, where)


def _imbalance(counts: Mapping[str, int], where: str) -> Iterator[Finding]:
    if not counts:
        return
    most, least = (
        max(counts, key=lambda label: counts[label]),
        min(counts, key=lambda label: counts[label]),
    )
    ratio = counts[most] / counts[least]
    level: Level | None = (
        "warning"
        if ratio >= IMBALANCE["warning"]
        else "info"
        if ratio >= IMBALANCE["info"]
        else None
    )
    if level is not None:
        message = (
            f"{most} has {ratio:.1f} times the images of {least}{where} ({counts[most]} and"
            f" {counts[least]})"
        )
        yield Finding(
            level,
            "imbalance",
            message,
            "gather more of the small classes; look at each class's recall and not at accuracy"
            " alone",
        )


def _faults(seen: Sequence[Seen]) -> Iterator[Finding]:
    texts = {
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
    for fault, (check, what, advice) in texts.items():
        places = [place for place, image in enumerate(seen) if image.fault == fault]
        if places:
            yield _each(
                "error",
                check,
                f"{number(places, 'image')} {what}",
                advice,
                places,
                [seen[place].reason for place in places],
            )


def _exact(seen: Sequence[Seen]) -> Iterator[Finding]:
    """A group is told of once, under the worst that is true of it."""
    groups = exact_groups(seen)
    conflicting = [
        group for group in groups if len({seen[place].example.label for place in group}) > 1
    ]
    across = [
        group
        for group in groups
        if group not in conflicting and len({seen[place].split for place in group}) > 1
    ]
    within = [group for group in groups if group not in conflicting and group not in across]
    if conflicting:
        advice = "one of the labels is wrong: keep one copy, with the right one"
        yield Finding(
            "error",
            "conflicting labels",
            f"{number(conflicting, 'image')} under two labels or more",
            advice,
            tuple(conflicting),
        )
    if across:
        advice = "the model is judged on what it has learnt: keep one copy"
        yield Finding(
            "error",
            "duplicates across splits",
            f"{number(across, 'image')} in two splits or more",
            advice,
            tuple(across),
        )
    if within:
        advice = "keep one copy; data that is still to be split puts copies on both sides"
        yield Finding(
            "warning",
            "duplicates",
            f"{number(within, 'image')} more than once",
            advice,
            tuple(within),
        )


def _near(listing: Listing, seen: Sequence[Seen]) -> Iterator[Finding]:
    pairs = near_pairs(seen)
    kinds: dict[str, list[NearPair]] = {"across": [], "labels": [], "within": []}
    for pair in pairs:
        first, second = seen[pair.first], seen[pair.second]
        kind = (
            "across"
            if first.split != second.split
            else "labels"
            if first.example.label != second.example.label
            else "within"
        )
        kinds[kind].append(pair)
    more = f" (the search ended at {PAIRS_MAX})" if len(pairs) >= PAIRS_MAX else ""
    texts: dict[str, tuple[Level, str, str, str]] = {
        "across": (
            "warning",
            "near-duplicates across splits",
            "in different splits",
            "look at them: if they show the same photo, keep both in one split",
        ),
        "labels": (
            "warning",
            "near-duplicates under two labels",
            "under different labels",
            "look at them: one label may be wrong",
        ),
        "within": (
            "warning" if WHOLE in listing.splits else "info",
            "near-duplicates",
            "of the same class and split",
            (
                "keep one of each; data that is still to be split puts them on both sides"
                if WHOLE in listing.splits
                else "they add little"
            ),
        ),
    }
    for kind, (level, check, what, advice) in texts.items():
        if found := kinds[kind]:
            groups, notes = (
                tuple((pair.first, pair.second) for pair in found),
                tuple(f"{pair.distance} of 64 bits differ" for pair in found),
            )
            yield Finding(
                level,
                check,
                f"{number(found, 'pair')} that look alike {what}{more}",
                advice,
                groups,
                notes,
            )


def _extensions(seen: Sequence[Seen]) -> Iterator[Finding]:
    suffixes = [PurePosixPath(image.example.name).suffix for image in seen]
    wrong = [
        place
        for place, image in enumerate(seen)
        if image.found_format
        and image.found_format != ENDINGS.get(suffixes[place].lower(), image.found_format)
    ]
    if wrong:
        notes = [f"is {seen[place].found_format}" for place in wrong]
        advice = "Loupe goes by the content, other programs by the name: rename"
        yield _each(
            "warning",
            "extension",
            f"{number(wrong, 'file')} whose content is not what the name says",
            advice,
            wrong,
            notes,
        )
    counted = Counter(suffixes)
    common = counted.most_common()
    if len(common) > 1:
        told = ", ".join(f"{count} {suffix or 'without'}" for suffix, count in common)
        rare = [place for place, suffix in enumerate(suffixes) if counted[suffix] * 20 < len(seen)]
        yield _each(
            "info",
            "mixed extensions",
            f"names end differently: {told}",
            "a program that looks for one ending misses the others",
            rare,
        )


def _unused(listing: Listing) -> Iterator[Finding]:
    """One finding for each reason: a warning where images are lost."""
    names: dict[tuple[Level, str], list[str]] = {}
    for entry in listing.unused:
        found = _format(entry)
        level: Level = "warning" if found or entry.reason.startswith(LOST) else "info"
        names.setdefault((level, entry.reason), []).append(
            f"{entry.name} ({found})" if found else entry.name
        )
    for (level, reason), files in names.items():
        check, advice = (
            "skipped images",
            f"move or convert what belongs to the data, remove the rest; read are {LISTED}",
        )
        if level == "info":
            check, advice = "skipped files", ""
        yield Finding(
            level,
            check,
            f"not read: {len(files):,} {reason}: {few_of(files)}",
            advice,
            files=tuple(files),
        )


def _format(entry: Unused) -> str | None:
    """The format of the image that is not used; None if it is no image, or is left behind by a
    system.
    """
    try:
        return containers.sniff(entry.content.head(1024)) if entry.content else None
    except DataError:
        return None


def _sizes(seen: Sequence[Seen]) -> Iterator[Finding]:
    crop = min(SPEC.crop)
    texts: tuple[tuple[Level, str, str, str, Callable[[Picture], bool]], ...] = (
        (
            "warning",
            "tiny",
            f"with a side under {TINY_PX} pixels",
            "there is little to see; remove, or train at that size",
            lambda p: _short(p) < TINY_PX,
        ),
        (
            "info",
            "small",
            f"with a side under {crop} pixels",
            "they are enlarged; train at a smaller image_size",
            lambda p: TINY_PX <= _short(p) < crop,
        ),
        (
            "info",
            "large",
            f"with a side over {LONG_SIDE_PX} pixels",
            "scale down once, for faster epochs",
            lambda p: _long(p) > LONG_SIDE_PX,
        ),
        (
            "warning",
            "aspect ratio",
            f"more than {ASPECT_MAX:.0f} times as long as wide",
            "the crop sees a small part; cut them up",
            lambda p: _long(p) > ASPECT_MAX * _short(p),
        ),
        (
            "info",
            "EXIF-rotated",
            "stored turned or mirrored",
            "Loupe turns them upright; other programs may not",
            lambda p: p.orientation != 1,
        ),
    )
    for level, check, what, advice, applies in texts:
        yield from _if_any(
            level, check, what, advice, seen, applies, lambda p: f"{p.width}x{p.height}"
        )


def _looks(seen: Sequence[Seen]) -> Iterator[Finding]:
    blank = [place for place, image in enumerate(seen) if is_blank(image)]
    if blank:
        yield _each(
            "warning",
            "blank",
            f"{number(blank, 'image')} of one flat colour",
            "remove what is no photo",
            blank,
        )
    texts: tuple[tuple[str, str, Callable[[Picture], bool], Callable[[Picture], str]], ...] = (
        (
            "dark",
            "very dark",
            lambda p: p.brightness < DARK,
            lambda p: f"brightness {p.brightness:.2f}",
        ),
        (
            "bright",
            "very bright",
            lambda p: p.brightness > BRIGHT,
            lambda p: f"brightness {p.brightness:.2f}",
        ),
        (
            "blurred",
            "without sharp detail",
            lambda p: p.sharpness < BLURRED,
            lambda p: f"sharpness {p.sharpness:.4f}",
        ),
    )
    vivid = [replace(image, picture=None) if is_blank(image) else image for image in seen]
    for check, what, applies, note in texts:
        yield from _if_any(
            "info",
            check,
            what,
            "look at them: remove those in which a person would not know the class",
            vivid,
            applies,
            note,
        )


def _if_any(
    level: Level,
    check: str,
    what: str,
    advice: str,
    seen: Sequence[Seen],
    applies: Callable[[Picture], bool],
    note: Callable[[Picture], str],
) -> Iterator[Finding]:
    """One finding of all images whose picture *applies* picks, or none."""
    chosen = {
        place: image.picture
        for place, image in enumerate(seen)
        if image.picture is not None and applies(image.picture)
    }
    if chosen:
        yield _each(
            level,
            check,
            f"{number(chosen, 'image')} {what}",
            advice,
            list(chosen),
            [note(picture) for picture in chosen.values()],
        )


def _each(
    level: Level,
    check: str,
    message: str,
    advice: str,
    places: Sequence[int],
    notes: Sequence[str] = (),
) -> Finding:
    """A finding of single images."""
    return Finding(level, check, message, advice, tuple((place,) for place in places), tuple(notes))


def _short(picture: Picture) -> int:
    return min(picture.width, picture.height)


def _long(picture: Picture) -> int:
    return max(picture.width, picture.height)

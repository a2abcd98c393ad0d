"""Finds copies of images: the same bytes, or pictures that look nearly the same.

Letters used in shapes: N images, P pairs, B images of a block, T pixels of a thumb.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.check.findings import Finding, of_images
from training.data.check.inspection import BLANK_CONTRAST, Inspected
from training.data.layout.splits import WHOLE
from training.data.sources.listing import Listing
from training.progress import steps

HASH_DISTANCE_MAX = 10
"""Bits of the 64 that may differ.

The nearest of the 124,750 pairs of the 500 different photos of imagenet-500 is 12 apart. Together
with the thumbs, this finds all of 167 changed copies at JPEG quality 30 and in grey. It finds 98 %
at quality 10 and half size, and 98 % at 1.3 times the brightness. It finds 89 % with 3 % cropped
off every side, 81 % with 5 % off one side, and 34 % with a white bar over 4 % of the picture.
Mirrored copies are not found.
"""
THUMB_DISTANCE_MAX = 0.5
"""Greatest root mean square difference of two thumbs, in units of their contrast.

A near hash counts only with it, for two images of `SMALL_SIDE_PX` or more."""
SMALL_THUMB_DISTANCE_MAX = 0.1
"""The same if one of the two is smaller: scans of one digit look alike without being copies."""
SMALL_SIDE_PX = 64
PAIRS_MAX = 100_000
BLOCK = 256
PIECE = 1 << 16


class NearPair(NamedTuple):
    """Two images that look alike, by their places in the list of all images."""

    first: int
    second: int
    distance: int
    """Bits that differ, 0 to 64."""


def exact_groups(seen: Sequence[Inspected]) -> list[tuple[int, ...]]:
    """Places of images with the same bytes, two or more together, in order."""
    groups: dict[str, list[int]] = {}
    for place, image in enumerate(seen):
        if image.sha256 and image.fault != "empty":
            groups.setdefault(image.sha256, []).append(place)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_pairs(seen: Sequence[Inspected], *, pairs_max: int = PAIRS_MAX) -> list[NearPair]:
    """Pairs that look alike, nearest first: at most *pairs_max*.

    Of images with the same bytes only the first is compared. Blank images are not compared.

    All N^2/2 pairs are compared, in blocks: 60,000 images take about ten seconds on one core, and
    ten times as many a hundred times as long.
    """
    first = {image.sha256: place for place, image in reversed(list(enumerate(seen)))}
    pictures = {
        place: image.picture
        for place, image in enumerate(seen)
        if image.picture is not None and first[image.sha256] == place and not image.picture.is_blank
    }
    places = list(pictures)
    if not places:
        return []
    hash_N = np.array([picture.hash for picture in pictures.values()], dtype=np.uint64)
    thumb_NT = _normalised(
        np.array([picture.thumb.ravel() for picture in pictures.values()], dtype=np.float32)
    )
    small_N = np.array([picture.short_px < SMALL_SIDE_PX for picture in pictures.values()])
    starts = range(0, len(places), BLOCK)
    pairs = (
        NearPair(places[first], places[second], distance)
        for start in steps(starts, total=len(starts), title="compare")
        for first, second, distance in _block(hash_N, thumb_NT, small_N, start)
    )
    return sorted(
        itertools.islice(pairs, pairs_max),
        key=lambda pair: (pair.distance, pair.first, pair.second),
    )


def _normalised(thumb_NT: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each thumb with mean 0 and standard deviation 1: brightness and contrast do not count."""
    centred_NT = thumb_NT - thumb_NT.mean(axis=1, keepdims=True)
    return np.asarray(
        centred_NT / np.maximum(centred_NT.std(axis=1, keepdims=True), BLANK_CONTRAST),
        dtype=np.float32,
    )


def _block(
    hash_N: NDArray[np.uint64],
    thumb_NT: NDArray[np.float32],
    small_N: NDArray[np.bool_],
    start: int,
) -> Iterator[tuple[int, int, int]]:
    """(first, second, distance) of near pairs whose first lies in the block at *start*."""
    bits_BN = np.bitwise_count(hash_N[start : start + BLOCK, None] ^ hash_N[None, start:])
    row_P, column_P = np.nonzero(np.triu(bits_BN <= HASH_DISTANCE_MAX, k=1))
    # In pieces: where very many hashes are alike, their thumbs together would not fit into memory.
    for at in range(0, len(row_P), PIECE):
        i_P, j_P = row_P[at : at + PIECE], column_P[at : at + PIECE]
        apart_P = np.sqrt(((thumb_NT[start + i_P] - thumb_NT[start + j_P]) ** 2).mean(axis=1))
        near_P = apart_P <= np.where(
            small_N[start + i_P] | small_N[start + j_P],
            SMALL_THUMB_DISTANCE_MAX,
            THUMB_DISTANCE_MAX,
        )
        for i, j in zip(i_P[near_P], j_P[near_P], strict=True):
            yield start + int(i), start + int(j), int(bits_BN[i, j])


def exact(seen: Sequence[Inspected]) -> Iterator[Finding]:
    """Copies of images. Each group is named once, by its worst fault."""
    kinds: dict[str, dict[tuple[int, ...], str]] = defaultdict(dict)
    for group in exact_groups(seen):
        labels = {seen[place].example.label for place in group}
        splits = {seen[place].split for place in group}
        kind = "labels" if len(labels) > 1 else "splits" if len(splits) > 1 else "within"
        kinds[kind][group] = ""
    yield from of_images(
        "error",
        "conflicting labels",
        "under two labels or more",
        "one of the labels is wrong: keep one copy, with the right one",
        kinds["labels"],
    )
    yield from of_images(
        "error",
        "duplicates across splits",
        "in two splits or more",
        "the model is judged on what it has learnt: keep one copy",
        kinds["splits"],
    )
    yield from of_images(
        "warning",
        "duplicates",
        "more than once",
        "keep one copy; data that is still to be split puts copies on both sides",
        kinds["within"],
    )


def near(listing: Listing, seen: Sequence[Inspected]) -> Iterator[Finding]:
    """Pairs that look alike: across splits, under two labels, or neither."""
    kinds: dict[str, dict[tuple[int, ...], str]] = defaultdict(dict)
    pairs = near_pairs(seen)
    for pair in pairs:
        one, other = seen[pair.first], seen[pair.second]
        same_label = one.example.label == other.example.label
        kind = "splits" if one.split != other.split else "within" if same_label else "labels"
        kinds[kind][pair.first, pair.second] = f"{pair.distance} of 64 bits differ"
    more = f" (the search ended at {PAIRS_MAX})" if len(pairs) >= PAIRS_MAX else ""
    yield from of_images(
        "warning",
        "near-duplicates across splits",
        f"that look alike in different splits{more}",
        "look at them: if they show the same photo, keep both in one split",
        kinds["splits"],
        "pair",
    )
    yield from of_images(
        "warning",
        "near-duplicates under two labels",
        f"that look alike under different labels{more}",
        "look at them: one label may be wrong",
        kinds["labels"],
        "pair",
    )
    whole = WHOLE in listing.splits
    yield from of_images(
        "warning" if whole else "info",
        "near-duplicates",
        f"that look alike of the same class and split{more}",
        "keep one of each; data that is still to be split puts them on both sides"
        if whole
        else "they add little",
        kinds["within"],
        "pair",
    )

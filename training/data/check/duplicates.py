"""The same picture twice: to the last byte, or to the eye.

Letters used in shapes: N images, P pairs, B images of a block, T pixels of a thumb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.check.inspection import Seen
from training.progress import steps

HASH_DISTANCE_MAX = 10
"""Bits of the 64 that may differ. Measured: of the 124,750 pairs of the 500 different photos of imagenet-500, none is nearer than 12. Of
167 of them, each against its own changed copy, this and the thumbs together find all at JPEG quality 30, all in grey, 98 % at quality 10
and half size, 98 % at 1.3 times the brightness, 89 % with 3 % cropped off every side, 81 % with 5 % off one side, but only 34 % where a white
bar covers a twenty-fifth of the picture. Mirrored copies are not found."""
THUMB_DISTANCE_MAX = 0.5
"""Root mean square difference of thumbs in units of their contrast, for two images of `SMALL_SIDE_PX` or more. It confirms what the hash proposes."""
SMALL_THUMB_DISTANCE_MAX = 0.1
"""The same where one of the two is smaller: scans of one digit resemble each other without being copies."""
SMALL_SIDE_PX = 64
BLANK_CONTRAST = 1.0
"""Standard deviation of a thumb, of 255, below which there is nothing to compare."""
PAIRS_MAX = 100_000
BLOCK = 256
PIECE = 1 << 16


@dataclass(frozen=True)
class NearPair:
    """Two images that look alike, by their place in the list of all."""

    first: int
    second: int
    distance: int
    """Bits that differ, 0 to 64."""


def exact_groups(seen: Sequence[Seen]) -> list[tuple[int, ...]]:
    """Places of images with the same bytes, two or more together, in order."""
    groups: dict[str, list[int]] = {}
    for place, image in enumerate(seen):
        if image.sha256 and image.fault != "empty":
            groups.setdefault(image.sha256, []).append(place)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_pairs(seen: Sequence[Seen], *, pairs_max: int = PAIRS_MAX) -> list[NearPair]:
    """Pairs that look alike, nearest first: at most *pairs_max*.

    Of images with the same bytes only the first is compared; blank ones are not.

    All N^2/2 pairs are compared, in blocks: 60,000 images take about ten seconds on one core, and
    ten times as many a hundred times as long.
    """
    places = _comparable(seen)
    pictures = [picture for place in places if (picture := seen[place].picture) is not None]
    if not pictures:
        return []
    hash_N = np.array([picture.hash for picture in pictures], dtype=np.uint64)
    thumb_NT = _normalised(
        np.array([picture.thumb.ravel() for picture in pictures], dtype=np.float32)
    )
    small_N = np.array(
        [min(picture.width, picture.height) < SMALL_SIDE_PX for picture in pictures], dtype=bool
    )
    found: list[NearPair] = []
    starts = range(0, len(places), BLOCK)
    for start in steps(starts, total=len(starts), title="compare"):
        pairs = _block(hash_N, thumb_NT, small_N, start, pairs_max - len(found))
        found += [
            NearPair(places[first], places[second], distance) for first, second, distance in pairs
        ]
        if len(found) >= pairs_max:
            break
    return sorted(found, key=lambda pair: (pair.distance, pair.first, pair.second))


def is_blank(image: Seen) -> bool:
    """Whether the picture is one flat colour."""
    return image.picture is not None and float(image.picture.thumb.std()) < BLANK_CONTRAST


def _comparable(seen: Sequence[Seen]) -> list[int]:
    first = {image.sha256: place for place, image in reversed(list(enumerate(seen)))}
    return [
        place
        for place, image in enumerate(seen)
        if image.picture is not None and first[image.sha256] == place and not is_blank(image)
    ]


def _normalised(thumb_NT: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each thumb with mean 0 and standard deviation 1, so that brightness and contrast do not
    count.
    """
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
    pairs_max: int,
) -> list[tuple[int, int, int]]:
    """(first, second, distance) of near pairs whose first lies in the block at *start*; at most
    *pairs_max*.
    """
    bits_BN = np.bitwise_count(hash_N[start : start + BLOCK, None] ^ hash_N[None, start:])
    row_P, column_P = np.nonzero(bits_BN <= HASH_DISTANCE_MAX)
    later_P = column_P > row_P
    row_P, column_P = row_P[later_P], column_P[later_P]
    pairs: list[tuple[int, int, int]] = []
    # In pieces: where very many hashes are alike, their thumbs together would not fit into memory.
    for at in range(0, len(row_P), PIECE):
        i_P, j_P = row_P[at : at + PIECE], column_P[at : at + PIECE]
        apart_P = np.sqrt(((thumb_NT[start + i_P] - thumb_NT[start + j_P]) ** 2).mean(axis=1))
        limit_P = np.where(
            small_N[start + i_P] | small_N[start + j_P],
            SMALL_THUMB_DISTANCE_MAX,
            THUMB_DISTANCE_MAX,
        )
        near_P = apart_P <= limit_P
        pairs += [
            (start + int(i), start + int(j), int(bits_BN[i, j]))
            for i, j in zip(i_P[near_P], j_P[near_P], strict=True)
        ]
        if len(pairs) >= pairs_max:
            return pairs[:pairs_max]
    return pairs
